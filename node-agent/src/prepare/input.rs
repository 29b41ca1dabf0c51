//! Inputs in command-line syntax.

use lamina_model::{DataType, InputSpec, ValueRange, ValueSpec};

/// Reads `NAME:DATATYPE:SHAPE[:MIN:MAX]`, `image:FP32:-1x3x224x224` or
/// `ids:INT64:-1x128:0:30521`. An empty shape is a scalar. A shape alone,
/// `1x3x224x224`, is FP32 and has no name until [`name_by_place`] gives it one.
///
/// # Errors
/// What is wrong, for people.
pub(super) fn parse_input(text: &str) -> Result<InputSpec, String> {
    if !text.contains(':') {
        let shape = parse_shape(text).ok().filter(|sizes| !sizes.is_empty());
        return Ok(InputSpec {
            value: ValueSpec {
                name: String::new(),
                datatype: DataType::Fp32,
                shape: shape.ok_or_else(|| usage(text))?,
            },
            range: None,
        });
    }
    let last: Vec<&str> = text.rsplitn(5, ':').collect();
    // A name may hold colons, so the end decides; a number is no datatype.
    let is_plain = last.get(1).is_some_and(|d| d.parse::<DataType>().is_ok());
    let (fields, range) = match last.as_slice() {
        [max, min, ..] if !is_plain && last.len() == 5 => (&last[2..], Some(range(min, max)?)),
        _ => (&last[..], None),
    };
    let [shape, datatype, name @ ..] = fields else {
        return Err(usage(text));
    };
    let mut name: Vec<&str> = name.to_vec();
    name.reverse();
    let name = name.join(":");
    if name.is_empty() {
        return Err(usage(text));
    }
    let datatype: DataType = datatype
        .parse()
        .map_err(|e| format!("input `{name}`: {e}"))?;
    let shape = parse_shape(shape).map_err(|e| format!("input `{name}`: {e}"))?;
    Ok(InputSpec {
        value: ValueSpec {
            name,
            datatype,
            shape,
        },
        range,
    })
}

/// Calls those without a name `input0`, `input1`, …, by their place in `forward`, as
/// outputs without one are called.
pub(super) fn name_by_place(mut inputs: Vec<InputSpec>) -> Vec<InputSpec> {
    for (place, input) in inputs.iter_mut().enumerate() {
        if input.value.name.is_empty() {
            input.value.name = format!("input{place}");
        }
    }
    inputs
}

fn parse_shape(text: &str) -> Result<Vec<i64>, String> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let sizes = text.split('x').map(|size| match size.parse::<i64>() {
        Ok(size) if size >= -1 => Ok(size),
        _ => Err(format!("`{text}` is no shape like -1x3x224x224")),
    });
    sizes.collect()
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
        let inputs = ["mask:FP32:1", "-1x3x8x8", "5"].map(|text| parse_input(text).unwrap());
        let expected = [
            spec("mask", &[1], None),
            spec("input1", &[-1, 3, 8, 8], None),
            spec("input2", &[5], None),
        ];
        assert_eq!(name_by_place(inputs.to_vec()), expected);
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
