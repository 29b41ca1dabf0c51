use crate::{InputSpec, ProbeError, ShapeError, Tensor, ValueSpec, check_sizes, tensors_by_name};
use std::collections::BTreeMap;

/// Most requests in a file of samples.
pub const MOST_SAMPLES: usize = 16;
/// Most bytes of a file of samples.
pub const SAMPLES_BYTES: u64 = 64 << 20;

/// Two requests distinguish most wrong answers from right ones; one distinguishes none.
const FEWEST_SAMPLES: usize = 2;

/// An invalid file of samples, or one that does not fit the declared inputs.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each message names its fields
pub enum SamplesError {
    #[error("it has {bytes} bytes; give at most {SAMPLES_BYTES}: a few requests are enough")]
    Large { bytes: u64 },
    #[error(
        "it is a zip archive, such as .npz: write the samples with `lamina.samples` or \
         safetensors.torch.save_file"
    )]
    Archive,
    #[error(
        "it is no safetensors file: write it with `lamina.samples` or \
         safetensors.torch.save_file"
    )]
    Format,
    #[error("it holds a tensor of the unsupported type {0}")]
    Dtype(String),
    #[error(
        "its tensor `{name}` belongs to no request: name each NUMBER.INPUT, such as `0.{example}`"
    )]
    Name { name: String, example: String },
    #[error("its tensor `{tensor}` matches no declared input; the inputs are {declared}")]
    Input { tensor: String, declared: String },
    #[error("it holds {got} requests; give {FEWEST_SAMPLES} to {MOST_SAMPLES}, numbered from 0")]
    Count { got: usize },
    #[error("its requests are numbered from 0, but `{missing}` is missing")]
    Missing { missing: String },
    #[error(
        "its request {number} does not fit the declared inputs: {error}; each is a request of \
         one row"
    )]
    Shape { number: usize, error: ShapeError },
    #[error(
        "its first two requests are not of the typical sizes, for which times are told: give \
         two such first, or declare another typical size, NAME:MIN..MAX@TYPICAL"
    )]
    Typical,
    #[error("its first two requests are equal, so they show nothing: give different ones")]
    Equal,
}

/// The requests in a file of samples: safetensors with a tensor `NUMBER.INPUT` for each
/// input of each, numbered from 0, `0.image`, `1.image`. Each is of batch 1 if the batch is
/// free.
///
/// # Errors
/// See [`SamplesError`]; to follow the file's name.
pub fn samples(file: &[u8], inputs: &[InputSpec]) -> Result<Vec<Vec<Tensor>>, SamplesError> {
    let bytes = file.len() as u64;
    if bytes > SAMPLES_BYTES {
        return Err(SamplesError::Large { bytes });
    }
    if file.starts_with(b"PK") {
        return Err(SamplesError::Archive);
    }
    let given = tensors_by_name(file).map_err(|error| match error {
        ProbeError::Dtype(name) => SamplesError::Dtype(name),
        ProbeError::Format(_) | ProbeError::Missing(_) => SamplesError::Format,
    })?;
    let mut by_number = numbered(given, inputs)?;
    let count = by_number.len();
    if !(FEWEST_SAMPLES..=MOST_SAMPLES).contains(&count) {
        return Err(SamplesError::Count { got: count });
    }
    let mut requests = Vec::with_capacity(count);
    for number in 0..count {
        let mut given = by_number.remove(&number).unwrap_or_default();
        let request: Result<Vec<Tensor>, SamplesError> = inputs
            .iter()
            .map(|input| {
                let tensor = given.remove(&input.value.name);
                let tensor = tensor.ok_or_else(|| SamplesError::Missing {
                    missing: format!("{number}.{}", input.value.name),
                })?;
                let fits = tensor.check(&of_one_row(&input.value));
                fits.map_err(|error| SamplesError::Shape { number, error })?;
                Ok(tensor)
            })
            .collect();
        let request = request?;
        let specs: Vec<ValueSpec> = inputs.iter().map(|i| i.value.clone()).collect();
        check_sizes(&specs, request.iter().map(|t| &t.shape[..]))
            .map_err(|error| SamplesError::Shape { number, error })?;
        requests.push(request);
    }
    if !are_typical(&requests[..FEWEST_SAMPLES], inputs) {
        return Err(SamplesError::Typical);
    }
    if requests[0] == requests[1] {
        return Err(SamplesError::Equal);
    }
    Ok(requests)
}

/// Whether all free sizes of `requests` are the typical ones.
fn are_typical(requests: &[Vec<Tensor>], inputs: &[InputSpec]) -> bool {
    let is_typical = |(tensor, input): (&Tensor, &InputSpec)| {
        // A file has the bytes that it has.
        let mut sizes = input.value.sizes.iter().filter(|s| s.bounds.is_some());
        sizes.all(|s| tensor.shape.get(s.dimension) == Some(&s.typical))
    };
    requests
        .iter()
        .all(|r| r.iter().zip(inputs).all(is_typical))
}

type Numbered = BTreeMap<usize, BTreeMap<String, Tensor>>;

fn numbered(
    given: BTreeMap<String, Tensor>,
    inputs: &[InputSpec],
) -> Result<Numbered, SamplesError> {
    let declared = || inputs.iter().map(|i| i.value.name.as_str());
    let mut by_number = Numbered::new();
    for (tensor, value) in given {
        let parts = tensor.split_once('.');
        // `00` would be a second name of `0`.
        let parts = parts.and_then(|(number, input)| {
            let parsed = number.parse::<usize>().ok()?;
            (parsed.to_string() == number).then_some((parsed, input))
        });
        let Some((number, input)) = parts else {
            return Err(SamplesError::Name {
                name: tensor,
                example: declared().next().unwrap_or("image").to_owned(),
            });
        };
        if !declared().any(|name| name == input) {
            return Err(SamplesError::Input {
                declared: declared().collect::<Vec<_>>().join(", "),
                tensor,
            });
        }
        let request = by_number.entry(number).or_default();
        request.insert(input.to_owned(), value);
    }
    Ok(by_number)
}

/// `value` with 1 for a free batch; free sizes stay.
fn of_one_row(value: &ValueSpec) -> ValueSpec {
    let one = |(place, &dim): (usize, &i64)| match dim {
        -1 if value.size_at(place).is_none() => 1,
        _ => dim,
    };
    ValueSpec {
        shape: value.shape.iter().enumerate().map(one).collect(),
        ..value.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DataType;
    use safetensors::{Dtype, tensor::TensorView};

    fn input(name: &str, datatype: DataType, shape: &[i64]) -> InputSpec {
        InputSpec {
            value: ValueSpec {
                name: name.into(),
                datatype,
                shape: shape.to_vec(),
                sizes: Vec::new(),
            },
            range: None,
        }
    }

    fn inputs() -> [InputSpec; 2] {
        [
            input("ids", DataType::Int64, &[-1, 2]),
            input("a.b", DataType::Fp32, &[]),
        ]
    }

    /// Name, type and shape of a tensor, and the byte that fills it.
    type Given<'a> = (&'a str, Dtype, &'a [usize], u8);

    fn file(tensors: &[Given<'_>]) -> Vec<u8> {
        let data: Vec<Vec<u8>> = tensors
            .iter()
            .map(|(_, dtype, shape, fill)| {
                let width = if *dtype == F32 { 4 } else { 8 };
                vec![*fill; width * shape.iter().product::<usize>()]
            })
            .collect();
        let views = tensors
            .iter()
            .zip(&data)
            .map(|((name, dtype, shape, _), data)| {
                (
                    *name,
                    TensorView::new(*dtype, shape.to_vec(), data).unwrap(),
                )
            });
        safetensors::serialize(views, None).unwrap()
    }

    const IDS: Dtype = Dtype::I64;
    const F32: Dtype = Dtype::F32;

    #[test]
    fn requests_come_in_the_order_of_their_numbers_and_of_the_inputs() {
        let file = file(&[
            ("1.ids", IDS, &[1, 2], 1),
            ("0.ids", IDS, &[1, 2], 0),
            ("1.a.b", F32, &[], 3),
            ("0.a.b", F32, &[], 2),
        ]);
        let requests = samples(&file, &inputs()).unwrap();
        assert_eq!(requests.len(), 2);
        let fills: Vec<u8> = requests.iter().flatten().map(|t| t.data[0]).collect();
        assert_eq!(fills, [0, 2, 1, 3]);
        assert_eq!(requests[1][0].shape, [1, 2]);
    }

    #[test]
    fn each_mistake_is_named() {
        let whole: [Given<'static>; 4] = [
            ("0.ids", IDS, &[1, 2], 0),
            ("1.ids", IDS, &[1, 2], 1),
            ("0.a.b", F32, &[], 0),
            ("1.a.b", F32, &[], 0),
        ];
        let with = |change: &dyn Fn(&mut Vec<Given<'static>>)| {
            let mut tensors = whole.to_vec();
            change(&mut tensors);
            samples(&file(&tensors), &inputs()).unwrap_err().to_string()
        };
        let said = with(&|t| t[0].0 = "ids");
        assert!(said.contains("`ids` belongs to no request"), "{said}");
        assert!(said.contains("such as `0.ids`"), "{said}");
        let said = with(&|t| t[0].0 = "00.ids");
        assert!(said.contains("`00.ids` belongs to no request"), "{said}");
        let said = with(&|t| t.push(("0.mask", F32, &[], 0)));
        assert!(
            said.contains("`0.mask` matches no declared input"),
            "{said}"
        );
        assert!(said.contains("the inputs are ids, a.b"), "{said}");
        let said = with(&|t| t.truncate(1));
        assert!(said.contains("it holds 1 requests"), "{said}");
        let said = with(&|t| {
            t[1].0 = "2.ids";
            t[3].0 = "2.a.b";
        });
        assert!(said.contains("`1.ids` is missing"), "{said}");
        let said = with(&|t| t.truncate(3));
        assert!(said.contains("`1.a.b` is missing"), "{said}");
        let said = with(&|t| t[1].2 = &[2, 2]);
        assert!(said.contains("request 1"), "{said}");
        assert!(said.contains("expected shape [1, 2], got [2, 2]"), "{said}");
        let said = with(&|t| t[2].1 = Dtype::F64);
        assert!(said.contains("expected datatype FP32, got FP64"), "{said}");
        let said = with(&|t| t[1].3 = 0);
        assert!(said.contains("first two requests are equal"), "{said}");
    }

    #[test]
    fn what_is_no_file_of_samples_is_refused() {
        let said = |file: &[u8]| samples(file, &inputs()).unwrap_err().to_string();
        assert!(said(b"PK\x03\x04").contains("lamina.samples"));
        assert!(said(b"hello").contains("no safetensors file"));
        let many: Vec<String> = (0..17).map(|n| format!("{n}.ids")).collect();
        let many: Vec<_> = many
            .iter()
            .map(|n| (n.as_str(), IDS, &[1, 2][..], 0))
            .collect();
        let ids = &inputs()[..1];
        let said = samples(&file(&many), ids).unwrap_err().to_string();
        assert!(said.contains("it holds 17 requests"), "{said}");
        let large = vec![0; usize::try_from(SAMPLES_BYTES).unwrap() + 1];
        let said = samples(&large, ids).unwrap_err().to_string();
        assert!(said.contains("it has 67108865 bytes"), "{said}");
    }
}
