//! Against Pillow and torchvision; `goldens.py` beside this file writes what is compared.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test as a whole

use lamina_images::prepare;
use lamina_model::{
    Area, DeclaredFiles, ImageInput, ImageSource, ImageSteps, Tensor, files_in_rows,
};
use serde::Deserialize;
use std::path::PathBuf;

#[derive(Debug, Deserialize)]
struct Case {
    file: String,
    kind: String,
    steps: ImageSteps,
    from: usize,
    levels: usize,
}

fn golden(name: &str) -> Vec<u8> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    std::fs::read(folder.join(name)).unwrap()
}

fn image(steps: &ImageSteps) -> ImageInput {
    let mut steps = steps.clone();
    if steps.area().is_none() {
        steps.crop = None;
    }
    ImageInput {
        name: "image".into(),
        rows: -1,
        source: ImageSource::Files(DeclaredFiles::default().resolved()),
        steps,
    }
}

fn prepared(files: &[Vec<u8>], steps: &ImageSteps) -> Result<Tensor, String> {
    let image = image(steps);
    image.check().unwrap();
    let rows = files_in_rows(files, 1 << 22).unwrap();
    prepare(&image, &rows.shape, &rows.data).map_err(|e| e.to_string())
}

/// The levels of 255 that values stand for.
fn levels(tensor: &Tensor, steps: &ImageSteps) -> Vec<f64> {
    let values = floats(&tensor.data);
    let plane = values.len() / 3;
    let level = |(at, value): (usize, f32)| {
        let colour = at / plane.max(1);
        (f64::from(value) * steps.std[colour] + steps.mean[colour]) * 255.0
    };
    values.into_iter().enumerate().map(level).collect()
}

fn floats(data: &[u8]) -> Vec<f32> {
    let (values, _) = data.as_chunks::<4>();
    values.iter().map(|v| f32::from_le_bytes(*v)).collect()
}

fn imagenet() -> ImageSteps {
    serde_json::from_str(
        r#"{"resize":{"shorterSide":32},"crop":{"width":28,"height":28},
            "mean":[0.485,0.456,0.406],"std":[0.229,0.224,0.225]}"#,
    )
    .unwrap()
}

/// How far levels may be from Pillow's: the largest difference, and the mean one.
fn tolerance(case: &Case) -> (f64, f64) {
    let is_resized = !matches!(case.kind.as_str(), "crop" | "filled");
    match (case.file.ends_with(".jpg"), is_resized) {
        // Each pass rounds once.
        (false, true) => (1.0, 0.1),
        (false, false) => (0.0, 0.0),
        // Decoders round the cosine transform and colours in ways of their own, and spread
        // colours of fewer pixels in ways of their own.
        (true, _) => (4.0, 0.6),
    }
}

#[test]
fn images_become_what_pillow_and_torchvision_make_of_them() {
    let cases: Vec<Case> = serde_json::from_slice(&golden("cases.json")).unwrap();
    let all = golden("levels");
    assert!(cases.len() > 40);
    let mut wrong = Vec::new();
    for case in &cases {
        let name = format!("{} {}", case.file, case.kind);
        let tensor = prepared(&[golden(&case.file)], &case.steps).unwrap_or_else(|e| {
            panic!("{name}: {e}");
        });
        let wanted = &all[case.from..case.from + case.levels];
        let got = levels(&tensor, &case.steps);
        assert_eq!(got.len(), wanted.len(), "{name}");
        let differences = got
            .iter()
            .zip(wanted)
            .map(|(a, b)| (a - f64::from(*b)).abs());
        let largest = differences.clone().fold(0.0, f64::max);
        let mean = differences.sum::<f64>() / got.len() as f64;
        println!("{name}: largest {largest:.2}, mean {mean:.3}");
        let (most, most_mean) = tolerance(case);
        if largest > most + 1e-3 || mean > most_mean + 1e-3 {
            wrong.push(format!("{name}: {largest} {mean}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn numbers_are_those_of_torch_bit_for_bit() {
    let cases: Vec<Case> = serde_json::from_slice(&golden("cases.json")).unwrap();
    let case = cases
        .iter()
        .find(|c| c.file == "rgb.png" && c.kind == "filled");
    let tensor = prepared(&[golden("rgb.png")], &case.unwrap().steps).unwrap();
    assert_eq!(tensor.shape, [1, 3, 52, 70]);
    assert_eq!(floats(&tensor.data), floats(&golden("rgb-filled.f32")));
}

#[test]
fn a_batch_is_each_of_its_files() {
    let files = ["baseline.jpg", "rgb.png", "grey.jpg"].map(golden);
    let steps = imagenet();
    let batch = prepared(&files, &steps).unwrap();
    assert_eq!(batch.shape, [3, 3, 28, 28]);
    let alone: Vec<u8> = files
        .iter()
        .flat_map(|file| prepared(std::slice::from_ref(file), &steps).unwrap().data)
        .collect();
    assert!(batch.data[..] == alone[..]);
}

#[test]
fn raw_pixels_are_those_of_the_file() {
    let steps = imagenet();
    let file = prepared(&[golden("rgb.png")], &steps).unwrap();
    let mut reader = png::Decoder::new(std::io::Cursor::new(golden("rgb.png")))
        .read_info()
        .unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    reader.next_frame(&mut pixels).unwrap();
    let image = ImageInput {
        source: ImageSource::Pixels(Area {
            width: 61,
            height: 47,
        }),
        ..image(&steps)
    };
    assert_eq!(prepare(&image, &[1, 47, 61, 3], &pixels).unwrap(), file);
    assert!(prepare(&image, &[1, 47, 61, 3], &pixels[1..]).is_err());
    assert!(prepare(&image, &[1, 47], &pixels).is_err());
}

#[test]
fn what_exif_says_is_left_to_the_client_as_pillow_does() {
    let cases: Vec<Case> = serde_json::from_slice(&golden("cases.json")).unwrap();
    assert!(cases.iter().any(|c| c.file == "turned.jpg"));
}

#[test]
fn what_cannot_be_taken_is_refused_by_what_it_is() {
    let said = |file: Vec<u8>| prepared(&[file], &imagenet()).unwrap_err();
    for (name, about) in [
        ("cmyk.jpg", "image 0: its colours are CMYK"),
        ("grey16.png", "its colours are 16 bits of grey"),
        ("other.gif", "neither a JPEG nor a PNG"),
    ] {
        assert!(said(golden(name)).contains(about), "{}", said(golden(name)));
    }
    let bomb = said(golden("bomb.png"));
    let wanted = "16384 by 16384 pixels; 4194304 are the most";
    assert!(bomb.contains(wanted), "{bomb}");
    let mut wide = golden("baseline.jpg");
    let head = wide.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
    wide[head + 5..head + 9].copy_from_slice(&[0x30, 0, 0x30, 0]);
    assert!(said(wide).contains("12288 by 12288 pixels"));
}

#[test]
fn no_part_of_a_file_is_taken_for_the_whole() {
    for name in [
        "baseline.jpg",
        "progressive.jpg",
        "turned.jpg",
        "rgb.png",
        "palette.png",
    ] {
        let file = golden(name);
        for length in 1..file.len() - 16 {
            let part = prepared(&[file[..length].to_vec()], &imagenet());
            assert!(part.is_err(), "{length} bytes of {name}");
        }
    }
}

#[test]
fn no_change_of_a_file_makes_it_panic() {
    for name in [
        "baseline.jpg",
        "progressive.jpg",
        "palette.png",
        "rgba.png",
        "bits.png",
    ] {
        let file = golden(name);
        for at in 0..file.len() {
            for change in [0, 1, 0x7f, 0xff] {
                let mut other = file.clone();
                other[at] ^= change;
                // Either way is right, as Pillow has it.
                let _ = prepared(&[other], &imagenet());
            }
        }
    }
}
