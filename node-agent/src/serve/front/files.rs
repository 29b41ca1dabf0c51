//! Files in a request: elements of a tensor of BYTES, as rows of the value that travels.

use super::error::InputError;
use bytes::Bytes;
use lamina_model::{Tensor, ValueSpec, files_in_rows};
use lamina_proto::inference::InferTensorContents;
use lamina_proto::inference::model_infer_request::InferInputTensor;

/// What clients call the type.
pub(super) const BYTES: &str = "BYTES";

/// The files that `input` holds, as `spec` wants them to travel.
///
/// # Errors
/// It holds something else, or files that are too large; no memory is taken before.
pub(super) fn rows(
    spec: &ValueSpec,
    most: u64,
    input: &InferInputTensor,
    raw: Option<&Bytes>,
) -> Result<Tensor, InputError> {
    let name = || spec.name.clone();
    let is_vector = matches!(input.shape.as_slice(), [count] if *count >= 1);
    if input.datatype != BYTES || !is_vector {
        return Err(InputError::NoFiles {
            name: name(),
            datatype: input.datatype.clone(),
            shape: input.shape.clone(),
        });
    }
    let files: Vec<&[u8]> = match (raw, &input.contents) {
        (Some(_), Some(contents)) if *contents != InferTensorContents::default() => {
            return Err(InputError::Both { name: name() });
        }
        (Some(raw), _) => elements(raw).ok_or_else(|| InputError::Elements { name: name() })?,
        (None, Some(contents)) => contents
            .bytes_contents
            .iter()
            .map(|file| &file[..])
            .collect(),
        (None, None) => Vec::new(),
    };
    let wanted = input.shape.first().copied().unwrap_or_default();
    if i64::try_from(files.len()) != Ok(wanted) {
        return Err(InputError::FileCount {
            name: name(),
            wanted,
            got: files.len(),
        });
    }
    files_in_rows(&files, most).map_err(|error| InputError::Files {
        name: name(),
        error,
    })
}

/// Elements with four bytes of length, little-endian, before each; none where that is not
/// what there is, to the byte.
fn elements(mut raw: &[u8]) -> Option<Vec<&[u8]>> {
    let mut all = Vec::new();
    while !raw.is_empty() {
        let (length, rest) = raw.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        let (file, rest) = rest.split_at_checked(length)?;
        // An empty one is none, and a great many of them are no request.
        (!file.is_empty()).then(|| all.push(file))?;
        raw = rest;
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamina_model::{DeclaredFiles, ImageInput, ImageSource, ImageSteps};

    fn spec() -> ValueSpec {
        let steps: ImageSteps = serde_json::from_str(r#"{"crop":{"width":8,"height":8}}"#).unwrap();
        let image = ImageInput {
            name: "image".into(),
            rows: -1,
            source: ImageSource::Files(DeclaredFiles::default().resolved()),
            steps,
        };
        image.sent()
    }

    fn input(shape: &[i64]) -> InferInputTensor {
        InferInputTensor {
            name: "image".into(),
            datatype: BYTES.into(),
            shape: shape.to_vec(),
            ..InferInputTensor::default()
        }
    }

    fn asked(input: &InferInputTensor, raw: Option<&[u8]>) -> Result<Tensor, String> {
        let raw = raw.map(Bytes::copy_from_slice);
        rows(&spec(), 5, input, raw.as_ref()).map_err(|e| e.to_string())
    }

    #[test]
    fn elements_become_rows_whether_raw_or_typed() {
        let raw = [&3_u32.to_le_bytes()[..], b"abc", &1_u32.to_le_bytes(), b"d"].concat();
        let rows = asked(&input(&[2]), Some(&raw)).unwrap();
        assert_eq!(rows.shape, [2, 7]);
        rows.check(&spec()).unwrap();
        let typed = InferInputTensor {
            contents: Some(InferTensorContents {
                bytes_contents: vec![Bytes::from_static(b"abc"), Bytes::from_static(b"d")],
                ..InferTensorContents::default()
            }),
            ..input(&[2])
        };
        assert_eq!(asked(&typed, None).unwrap(), rows);
        assert!(
            asked(&typed, Some(&raw))
                .unwrap_err()
                .contains("send one of them")
        );
    }

    #[test]
    fn what_is_no_file_is_refused_by_what_it_is() {
        let one = [&3_u32.to_le_bytes()[..], b"abc"].concat();
        for (shape, raw, about) in [
            (&[1, 1][..], &one[..], "takes files"),
            (&[0], &[], "takes files"),
            (&[2], &one, "1 files came, but its shape says 2"),
            (&[1], &[], "JSON cannot carry a file"),
            (&[1], &one[..6], "four bytes of length"),
            (&[1], &[0; 4], "four bytes of length"),
            (
                &[1],
                &[&6_u32.to_le_bytes()[..], b"abcdef"].concat(),
                "one may have 5",
            ),
        ] {
            let said = asked(&input(shape), Some(raw)).unwrap_err();
            assert!(said.contains(about), "{shape:?}: {said}");
        }
        let pixels = InferInputTensor {
            datatype: "UINT8".into(),
            ..input(&[1])
        };
        assert!(
            asked(&pixels, Some(&one))
                .unwrap_err()
                .contains("UINT8 [1]")
        );
    }
}
