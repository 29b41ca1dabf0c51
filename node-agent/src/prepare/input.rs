//! Inputs in command-line syntax.

use lamina_model::{
    DataType, Declared, DeclaredImage, FixedArgument, FreeSize, InputSpec, SizeError, ValueRange,
    ValueSpec,
};

/// The type of files in a declaration.
const FILES: &str = ":BYTES:";
/// How images are declared.
const IMAGES: &str = "write NAME:BYTES:-1:{\"crop\":{\"width\":224,\"height\":224}}, or \
                      NAME:UINT8:-1xHEIGHTxWIDTHx3:{…} for pixels";

/// Reads `NAME:DATATYPE:SHAPE[:MIN:MAX]`, `image:FP32:-1x3x224x224` or
/// `ids:INT64:-1xseq:1..512:0:30521`. An empty shape is a scalar. A shape without
/// the rest, `1x3x224x224`, is FP32 and has no name until [`name_by_place`] adds one.
///
/// # Errors
/// The mistake, for people.
pub(super) fn parse_input(text: &str) -> Result<InputSpec, String> {
    if let Ok((shape, "")) = Shape::read(text)
        && !shape.dimensions.is_empty()
    {
        return Ok(shape.of(String::new(), DataType::Fp32, None));
    }
    let fields: Vec<&str> = text.split(':').collect();
    // A name may contain colons, so the last datatype counts.
    let is_datatype = |field: &&str| field.parse::<DataType>().is_ok();
    let Some(place) = fields.iter().rposition(is_datatype) else {
        return Err(match fields.as_slice() {
            [name, datatype, _, ..] if !name.is_empty() => match datatype.parse::<DataType>() {
                Err(unknown) => format!("input `{name}`: {unknown}"),
                Ok(_) => usage(text),
            },
            _ => usage(text),
        });
    };
    let name = fields[..place].join(":");
    let (Ok(datatype), Some((_, rest))) = (
        fields[place].parse(),
        text[name.len()..]
            .strip_prefix(':')
            .and_then(|behind| behind.split_once(':')),
    ) else {
        return Err(usage(text));
    };
    if name.is_empty() {
        return Err(usage(text));
    }
    let (shape, rest) = Shape::read(rest).map_err(|e| format!("input `{name}`: {e}"))?;
    let range = match rest.strip_prefix(':').and_then(|r| r.split_once(':')) {
        Some((min, max)) => Some(range(min, max)?),
        None if rest.is_empty() => None,
        None => {
            return Err(format!(
                "input `{name}`: `{rest}` behind its shape is no MIN:MAX"
            ));
        }
    };
    Ok(shape.of(name, datatype, range))
}

/// Reads an input as [`parse_input`] does, or an image: `NAME:BYTES:-1:STEPS` or
/// `NAME:UINT8:-1xHEIGHTxWIDTHx3:STEPS`, where the steps are a JSON object as a DnnModel has it
/// under `image`.
///
/// # Errors
/// What is wrong, for people.
pub(super) fn parse_declared(text: &str) -> Result<Declared, String> {
    let Some((input, steps)) = text.split_once(":{") else {
        return match text.contains(FILES) {
            true => Err(format!("`{text}`: BYTES are images; {IMAGES}")),
            false => parse_input(text).map(Declared::Input),
        };
    };
    let are_files = input.contains(FILES);
    // What travels are bytes.
    let input = parse_input(&input.replacen(FILES, ":UINT8:", 1))?;
    if input.value.datatype != DataType::Uint8 || input.range.is_some() {
        return Err(format!("`{text}` is no image: {IMAGES}"));
    }
    let declared: Result<DeclaredImage, _> = serde_json::from_str(&format!("{{{steps}"));
    let declared = declared.map_err(|e| format!("`{text}`: {e}; {IMAGES}"))?;
    let image = declared.input(&input.value, are_files);
    image.map(Declared::Image).map_err(|e| e.to_string())
}

/// Reads `NAME=VALUE`, a fixed argument.
///
/// # Errors
/// The mistake, for people.
pub(super) fn parse_argument(text: &str) -> Result<FixedArgument, String> {
    let parts = text.split_once('=').filter(|(name, _)| !name.is_empty());
    let (name, fixed) = parts.ok_or_else(|| format!("`{text}` is no NAME=VALUE"))?;
    Ok(FixedArgument {
        name: name.to_owned(),
        fixed: fixed.to_owned(),
    })
}

/// A shape as written.
#[derive(Debug, Default)]
struct Shape {
    dimensions: Vec<i64>,
    sizes: Vec<FreeSize>,
}

impl Shape {
    /// Reads a shape, and returns the text after it.
    fn read(text: &str) -> Result<(Self, &str), String> {
        let mut shape = Self::default();
        let mut rest = text;
        while !rest.starts_with(':') && !rest.is_empty() {
            let is_named = rest.starts_with(|c: char| c.is_ascii_alphabetic());
            let begin = if is_named {
                rest.find(':').map_or(rest.len(), |at| at + 1)
            } else {
                0
            };
            let is_part =
                |c: char| c.is_ascii_digit() || (is_named && "./@".contains(c)) || c == '-';
            let end = rest[begin..]
                .find(|c| !is_part(c))
                .map_or(rest.len(), |at| begin + at);
            shape.take(&rest[..end]).map_err(|e| match e {
                SizeError::Form(_) => {
                    format!("`{text}` is no shape like -1x3x224x224 or -1xseq:1..512")
                }
                bounds => bounds.to_string(),
            })?;
            rest = &rest[end..];
            match rest.strip_prefix('x') {
                Some(next) if !next.is_empty() => rest = next,
                _ => break,
            }
        }
        Ok((shape, rest))
    }

    fn take(&mut self, dimension: &str) -> Result<(), SizeError> {
        match dimension.parse::<i64>() {
            Ok(size) if size >= -1 => self.dimensions.push(size),
            _ => {
                let size = FreeSize::parse(dimension, self.dimensions.len())?;
                self.sizes.push(size);
                self.dimensions.push(-1);
            }
        }
        Ok(())
    }

    fn of(self, name: String, datatype: DataType, range: Option<ValueRange>) -> InputSpec {
        InputSpec {
            value: ValueSpec {
                name,
                datatype,
                shape: self.dimensions,
                sizes: self.sizes,
            },
            range,
        }
    }
}

/// Names unnamed ones `input0`, `input1`, …, by their position in `forward`, like unnamed outputs.
pub(super) fn name_by_place(mut inputs: Vec<Declared>) -> Vec<Declared> {
    for (place, input) in inputs.iter_mut().enumerate() {
        if let Declared::Input(input) = input
            && input.value.name.is_empty()
        {
            input.value.name = format!("input{place}");
        }
    }
    inputs
}

fn range(min: &str, max: &str) -> Result<ValueRange, String> {
    let number = |text: &str| {
        let number = text.parse::<f64>().ok().filter(|n| n.is_finite());
        number.ok_or_else(|| format!("`{text}` is no number"))
    };
    let range = ValueRange {
        min: number(min)?,
        max: number(max)?,
    };
    if range.min > range.max {
        return Err(format!("the range {min}:{max} is empty"));
    }
    Ok(range)
}

fn usage(text: &str) -> String {
    format!(
        "`{text}` is neither a shape such as 1x3x224x224 nor NAME:DATATYPE:SHAPE[:MIN:MAX], \
         such as image:FP32:-1x3x224x224"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, shape: &[i64], range: Option<(f64, f64)>) -> InputSpec {
        InputSpec {
            value: ValueSpec {
                name: name.into(),
                datatype: DataType::Fp32,
                shape: shape.to_vec(),
                sizes: Vec::new(),
            },
            range: range.map(|(min, max)| ValueRange { min, max }),
        }
    }

    fn format_input(input: &InputSpec) -> String {
        let value = &input.value;
        let shape: Vec<String> = value.shape.iter().map(ToString::to_string).collect();
        let mut text = format!("{}:{}:{}", value.name, value.datatype, shape.join("x"));
        if let Some(range) = input.range {
            text += &format!(":{}:{}", range.min, range.max);
        }
        text
    }

    #[test]
    fn what_is_written_is_read_again() {
        for input in [
            spec("image", &[-1, 3, 224, 224], None),
            spec("image", &[-1, 3], Some((-0.5, 1e-7))),
            spec("x", &[8], Some((0.0, 1.0))),
            spec("scalar", &[], None),
            spec("a:b", &[-1], None),
            spec("a:b:c", &[-1], Some((0.0, 255.0))),
        ] {
            let text = format_input(&input);
            assert_eq!(parse_input(&text), Ok(input), "{text}");
        }
    }

    #[test]
    fn a_shape_alone_is_fp32_and_named_by_its_place() {
        let inputs = ["mask:FP32:1", "-1x3x8x8", "5"].map(|text| parse_declared(text).unwrap());
        let expected = [
            Declared::Input(spec("mask", &[1], None)),
            Declared::Input(spec("input1", &[-1, 3, 8, 8], None)),
            Declared::Input(spec("input2", &[5], None)),
        ];
        assert_eq!(name_by_place(inputs.to_vec()), expected);
    }

    #[test]
    fn free_sizes_stand_in_their_places() {
        for (text, shape, typical, has_range) in [
            (
                "ids:INT64:-1xseq:1..512@128:0:99",
                vec![-1, -1],
                vec![-1, 128],
                true,
            ),
            (
                "x:FP32:-1x3xmax:32..64/32xw:8..8",
                vec![-1, 3, -1, -1],
                vec![-1, 3, 32, 8],
                false,
            ),
            ("a:b:FP32:n:1..4", vec![-1], vec![2], false),
            ("n:1..4x8", vec![-1, 8], vec![2, 8], false),
        ] {
            let input = parse_input(text).unwrap();
            assert_eq!(input.value.shape, shape, "{text}");
            assert_eq!(input.value.typical_shape(), typical, "{text}");
            assert_eq!(input.range.is_some(), has_range, "{text}");
        }
        assert_eq!(parse_input("a:b:FP32:n:1..4").unwrap().value.name, "a:b");
        let error = parse_input("x:FP32:-1xseq:5..2").unwrap_err();
        assert!(error.contains("the bounds are empty"), "{error}");
    }

    #[test]
    fn an_image_has_its_steps_behind_its_shape() {
        let steps = r#"{"resize":{"shorterSide":256},"crop":{"width":224,"height":200}}"#;
        for (shape, sent) in [
            ("image:BYTES:-1", vec![-1, -1]),
            ("image:BYTES:2", vec![2, -1]),
            ("image:UINT8:-1x480x640x3", vec![-1, 480, 640, 3]),
        ] {
            let Declared::Image(image) = parse_declared(&format!("{shape}:{steps}")).unwrap()
            else {
                panic!("{shape} is no image");
            };
            assert_eq!(image.sent().shape, sent, "{shape}");
            assert_eq!(image.taken().value.shape[1..], [3, 200, 224]);
        }
        for (text, about) in [
            ("image:BYTES:-1".to_owned(), "NAME:BYTES:-1:{"),
            (format!("image:FP32:-1x3:{steps}"), "is no image"),
            (format!("image:BYTES:-1x3:{steps}"), "has the shape [-1]"),
            ("image:BYTES:-1:{}".to_owned(), "a size of its own"),
            (
                r#"image:BYTES:-1:{"size":1}"#.to_owned(),
                "unknown field `size`",
            ),
        ] {
            let error = parse_declared(&text).unwrap_err();
            assert!(error.contains(about), "{text}: {error}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (text, about) in [
            ("image", "NAME:DATATYPE:SHAPE"),
            (":FP32:1", "NAME:DATATYPE:SHAPE"),
            ("image:float:1x2", "float"),
            ("image:FP32:1x-2", "1x-2"),
            ("1x3xfoo", "1x3xfoo"),
            ("1,3,224", "1,3,224"),
            ("", "NAME:DATATYPE:SHAPE"),
            ("image:FP32:1x2:a:1", "`a`"),
            ("image:FP32:1x2:2:1", "2:1"),
        ] {
            let error = parse_input(text).unwrap_err();
            assert!(error.contains(about), "{text}: {error}");
        }
    }
}
