use super::*;

fn photograph() -> ImageInput {
    ImageInput {
        name: "image".into(),
        rows: -1,
        source: ImageSource::Files(DeclaredFiles::default().resolved()),
        steps: ImageSteps {
            resize: Some(Resize::ShorterSide(256)),
            interpolation: Interpolation::Bilinear,
            crop: Some(Area {
                width: 224,
                height: 192,
            }),
            mean: [0.5, 0.4, 0.3],
            std: [0.25, 0.2, 0.2],
        },
    }
}

#[test]
fn a_file_is_a_row_of_bytes_and_becomes_what_the_model_takes() {
    let image = photograph();
    image.check().unwrap();
    let sent = image.sent();
    assert_eq!(sent.shape, [-1, -1]);
    assert!(sent.has_rows() && sent.is_file());
    assert_eq!(sent.bytes(1), Some(640 * 480 / 4 + 4));
    let taken = image.taken();
    assert_eq!(taken.value.shape, [-1, 3, 192, 224]);
    let range = taken.range.unwrap();
    assert!((range.min + 2.0).abs() < 1e-9 && (range.max - 3.5).abs() < 1e-9);
    assert_eq!(image.sample().value.shape, [-1]);
    assert!(image.peak_bytes() > 12 * USUAL_PIXELS);
}

#[test]
fn pixels_travel_as_they_are() {
    let image = ImageInput {
        source: ImageSource::Pixels(Area {
            width: 640,
            height: 480,
        }),
        ..photograph()
    };
    image.check().unwrap();
    let sent = image.sent();
    assert_eq!(sent.shape, [-1, 480, 640, 3]);
    assert_eq!(sent.bytes(1), Some(480 * 640 * 3));
    assert_eq!((image.typical().width, image.typical().height), (640, 480));
    assert_eq!(image.sample().value, sent);
    let text = serde_json::to_string(&image).unwrap();
    assert_eq!(serde_json::from_str::<ImageInput>(&text).unwrap(), image);
}

#[test]
fn the_block_says_what_it_is_and_survives_its_file() {
    let value = ValueSpec {
        name: "age".into(),
        datatype: DataType::Int64,
        shape: vec![-1],
        sizes: Vec::new(),
    };
    let block = Preprocessing::new(vec![
        Prepared::Image {
            image: photograph(),
        },
        Prepared::As {
            value: value.clone(),
        },
    ]);
    let file = block.to_bytes().unwrap();
    assert!(file.starts_with(Preprocessing::MAGIC));
    assert_eq!(Preprocessing::from_bytes(&file).unwrap(), block);
    assert_eq!(block.takes(), [photograph().sent(), value]);
    assert!(Preprocessing::from_bytes(b"{}").is_err());
    let mut image = photograph();
    image.steps.crop = None;
    let wrong = Preprocessing::new(vec![Prepared::Image { image }]);
    assert!(Preprocessing::from_bytes(&wrong.to_bytes().unwrap()).is_err());
}

#[test]
fn mistakes_are_named() {
    let said = |change: &dyn Fn(&mut ImageInput)| {
        let mut image = photograph();
        change(&mut image);
        image.check().unwrap_err().to_string()
    };
    let files = |declared: DeclaredFiles| {
        said(&|image| image.source = ImageSource::Files(declared.resolved()))
    };
    assert!(said(&|i| i.rows = 0).contains("`image`: 0 images"));
    assert!(said(&|i| i.rows = 65).contains("`image`: 65 images"));
    assert!(said(&|i| i.steps.crop = None).contains("a size of its own"));
    assert!(said(&|i| i.steps.std[1] = 0.0).contains("no std is 0"));
    assert!(said(&|i| i.steps.mean[1] = f64::NAN).contains("mean and std"));
    assert!(said(&|i| i.steps.resize = Some(Resize::ShorterSide(0))).contains("shorter side"));
    let empty = Area {
        width: 0,
        height: 9,
    };
    assert!(said(&|i| i.steps.crop = Some(empty)).contains("0 by 9"));
    assert!(said(&|i| i.steps.resize = Some(Resize::Exact(empty))).contains("0 by 9"));
    let none = DeclaredFiles::default();
    let many = files(DeclaredFiles {
        most_pixels: Some(1 << 40),
        ..none
    });
    assert!(many.contains("may be declared to have 1 to"), "{many}");
    let few = files(DeclaredFiles {
        most_pixels: Some(1000),
        ..none
    });
    assert!(few.contains("a typical image has 307200 pixels"), "{few}");
    let short = files(DeclaredFiles {
        most_bytes: Some(9),
        ..none
    });
    assert!(short.contains("a typical file has 76800 bytes"), "{short}");
    let wide = ImageSource::Pixels(Area {
        width: 1,
        height: 99_999,
    });
    assert!(said(&|i| i.source = wide.clone()).contains("an image is 1 by 99999"));
}
