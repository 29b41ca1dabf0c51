//! Images of strangers: no panic, no more memory than the limits say, and a tensor of the
//! declared size or a refusal. The first byte chooses the steps.
#![no_main]

use lamina_images::prepare;
use lamina_model::{
    Area, DeclaredFiles, ImageInput, ImageSource, ImageSteps, Interpolation, Resize, files_in_rows,
};
use libfuzzer_sys::fuzz_target;

const PIXELS: u64 = 1 << 18;
const BYTES: u64 = 1 << 16;

fn image(choice: u8) -> ImageInput {
    let area = |width, height| Area { width, height };
    let (resize, crop) = match choice % 4 {
        0 => (None, Some(area(9, 7))),
        1 => (Some(Resize::ShorterSide(8)), Some(area(8, 8))),
        2 => (Some(Resize::Exact(area(5, 11))), None),
        _ => (Some(Resize::ShorterSide(64)), Some(area(64, 60))),
    };
    let interpolation = match choice / 4 % 3 {
        0 => Interpolation::Bilinear,
        1 => Interpolation::Bicubic,
        _ => Interpolation::Lanczos,
    };
    ImageInput {
        name: "image".into(),
        rows: -1,
        source: ImageSource::Files(
            DeclaredFiles {
                typical: Some(area(64, 64)),
                most_pixels: Some(PIXELS),
                most_bytes: Some(BYTES),
                ..DeclaredFiles::default()
            }
            .resolved(),
        ),
        steps: ImageSteps {
            resize,
            interpolation,
            crop,
            mean: [0.5; 3],
            std: [0.25; 3],
        },
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, file)) = bytes.split_first() else {
        return;
    };
    let image = image(*choice);
    image.check().unwrap();
    let Ok(rows) = files_in_rows(&[file], BYTES) else {
        return;
    };
    if let Ok(tensor) = prepare(&image, &rows.shape, &rows.data) {
        let mut wanted = image.taken().value;
        wanted.shape[0] = 1;
        tensor.check(&wanted).unwrap();
    }
});
