//! Inputs that are declared as images. Pure.

use lamina_crds::dnn_model::{InputDataType, ModelInput};
use lamina_crds::images::{InputImage, Interpolation};
use lamina_model::{
    Area, DeclaredImage, DeclaredLimits, DeclaredResize, DeclaredTypical, ImageInput, ValueSpec,
};

/// The image that `input` is, if it is one; `value` has its name and shape.
///
/// # Errors
/// A contradiction, in words for its author.
pub(super) fn image(input: &ModelInput, value: &ValueSpec) -> Result<Option<ImageInput>, String> {
    let said = |what: &str| format!("`{}` {what}", input.name);
    let are_files = input.datatype == InputDataType::Bytes;
    let Some(image) = &input.image else {
        return match are_files {
            true => Err(said(
                "is of BYTES, which only images are: declare its `image`",
            )),
            false => Ok(None),
        };
    };
    if !are_files && input.datatype != InputDataType::Uint8 {
        return Err(said(
            "is an image: declare it BYTES for files, or UINT8 for pixels",
        ));
    }
    if input.range.is_some() {
        return Err(said("is an image, which has no range"));
    }
    let image = declared(image).map_err(said)?.input(value, are_files);
    image.map(Some).map_err(|error| error.to_string())
}

fn declared(image: &InputImage) -> Result<DeclaredImage, &'static str> {
    let colours = |numbers: &Option<Vec<f64>>| {
        let three = numbers.as_deref().map(<[f64; 3]>::try_from).transpose();
        three.map_err(|_| "has a mean or std that is not three numbers")
    };
    Ok(DeclaredImage {
        resize: image.resize.map(|resize| DeclaredResize {
            shorter_side: resize.shorter_side,
            width: resize.width,
            height: resize.height,
        }),
        interpolation: image.interpolation.map(interpolation),
        crop: image.crop.map(|crop| Area {
            width: crop.width,
            height: crop.height,
        }),
        mean: colours(&image.mean)?,
        std: colours(&image.std)?,
        typical: image.typical.map(|typical| DeclaredTypical {
            width: typical.width,
            height: typical.height,
            bytes: typical.bytes,
        }),
        limits: image.limits.map(|limits| DeclaredLimits {
            pixels: limits.pixels,
            bytes: limits.bytes,
        }),
    })
}

const fn interpolation(declared: Interpolation) -> lamina_model::Interpolation {
    match declared {
        Interpolation::Bilinear => lamina_model::Interpolation::Bilinear,
        Interpolation::Bicubic => lamina_model::Interpolation::Bicubic,
        Interpolation::Lanczos => lamina_model::Interpolation::Lanczos,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamina_crds::dnn_model::{Dimension, Range};
    use lamina_crds::images::{ImageArea, ImageLimits, ImageResize};
    use lamina_model::{DataType, Resize};

    fn input(change: impl Fn(&mut ModelInput)) -> Result<Option<ImageInput>, String> {
        let mut input = ModelInput {
            name: "image".into(),
            datatype: InputDataType::Bytes,
            shape: Dimension::sizes(&[-1]),
            range: None,
            image: Some(InputImage {
                resize: Some(ImageResize {
                    shorter_side: Some(256),
                    ..ImageResize::default()
                }),
                crop: Some(ImageArea {
                    width: 224,
                    height: 224,
                }),
                std: Some(vec![0.2, 0.3, 0.4]),
                ..InputImage::default()
            }),
        };
        change(&mut input);
        let sizes = input.shape.iter().map(|dimension| match dimension {
            Dimension::Size(size) => *size,
            Dimension::Free(_) => -1,
        });
        let value = ValueSpec {
            name: input.name.clone(),
            datatype: DataType::Uint8,
            shape: sizes.collect(),
            sizes: Vec::new(),
        };
        image(&input, &value)
    }

    fn steps(input: &mut ModelInput) -> &mut InputImage {
        input.image.get_or_insert_default()
    }

    #[test]
    fn an_image_is_what_its_author_says() {
        let image = input(|_| ()).unwrap().unwrap();
        assert_eq!(image.steps.resize, Some(Resize::ShorterSide(256)));
        assert_eq!(image.steps.std, [0.2, 0.3, 0.4]);
        assert_eq!(image.taken().value.shape, [-1, 3, 224, 224]);
        let plain = input(|i| {
            i.datatype = InputDataType::Fp32;
            i.image = None;
        });
        assert_eq!(plain, Ok(None));
    }

    #[test]
    fn contradictions_are_named() {
        let range = Range { min: 0.0, max: 1.0 };
        let few = ImageLimits {
            pixels: Some(9),
            bytes: None,
        };
        for (said, about) in [
            (input(|i| i.image = None), "only images are"),
            (
                input(|i| i.datatype = InputDataType::Fp32),
                "BYTES for files, or UINT8",
            ),
            (input(|i| i.range = Some(range)), "no range"),
            (
                input(|i| steps(i).mean = Some(vec![1.0])),
                "not three numbers",
            ),
            (input(|i| steps(i).crop = None), "a size of its own"),
            (
                input(|i| steps(i).limits = Some(few)),
                "a typical image has",
            ),
            (
                input(|i| i.shape = Dimension::sizes(&[-1, 3])),
                "has the shape [-1]",
            ),
        ] {
            let said = said.unwrap_err();
            assert!(said.contains(about), "{said}");
            assert!(said.contains("`image`"), "{said}");
        }
    }
}
