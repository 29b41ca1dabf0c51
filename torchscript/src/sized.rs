//! Free sizes besides the batch: the sizes at which a model is tried, and the requests for that.

use crate::PrepareError;
use crate::draw;
use crate::ffi::{Cost, Source};
use crate::forward::{run, torch_tensors};
use crate::shapes;
use lamina_model::{FreeSize, InputSpec, Tensor, ValueSpec, sizes_of};
use std::collections::BTreeMap;

/// Limits of a forward whose values at all cuts are compared, since these are held at once.
const COMPARED: Most = Most {
    bytes: 256 << 20,
    flops: 50_000_000_000,
};
/// Limits of one of which only the answers are compared.
const TRIED: Most = Most {
    bytes: 2 << 30,
    flops: 500_000_000_000,
};
/// The range of sizes in between, as powers from the smallest to the largest.
const BETWEEN: (f64, f64) = (0.2, 0.8);
/// First number of the requests drawn here: others use the lower ones.
const FIRST_NUMBER: u64 = 16;

/// A limit.
#[derive(Debug, Clone, Copy)]
struct Most {
    bytes: u64,
    flops: u64,
}

/// The free sizes of a model, and requests of other than typical ones.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sizes {
    free: Vec<FreeSize>,
    pub(crate) requests: Vec<SizedRequest>,
}

/// A request of batch 1 that the model must accept.
#[derive(Debug, Clone)]
pub(crate) struct SizedRequest {
    /// `h=32, w=64`, for people.
    pub(crate) label: String,
    /// Its sizes, in the order of [`Sizes::free`].
    sizes: Vec<i64>,
    pub(crate) request: Vec<Tensor>,
    /// It and another as a batch of two, if the batch is free.
    pub(crate) pair: Option<Vec<Tensor>>,
    /// It is too large to hold the values at all cuts.
    pub(crate) answers_only: bool,
}

/// Three requests with the smallest, the typical and the largest value of one free size, the others
/// typical.
pub(crate) struct Line {
    /// Name of the size.
    pub(crate) name: String,
    pub(crate) requests: [Vec<Tensor>; 3],
}

impl Sizes {
    /// Those that `inputs` declare; none of them is tried yet.
    ///
    /// # Errors
    /// The mistake in the declaration.
    pub(crate) fn declared(inputs: &[InputSpec]) -> Result<Self, String> {
        for InputSpec { value, .. } in inputs {
            let untold = |(place, &dim): (usize, &i64)| {
                place > 0 && dim == -1 && value.size_at(place).is_none()
            };
            if value.shape.iter().enumerate().any(untold) {
                return Err(format!(
                    "input `{}`: -1 is the batch and stands first; give another free dimension \
                     a name with bounds, such as n:1..512",
                    value.name
                ));
            }
        }
        let values: Vec<ValueSpec> = inputs.iter().map(|i| i.value.clone()).collect();
        Ok(Self {
            free: sizes_of(&values)?,
            requests: Vec::new(),
        })
    }

    /// Requests for which everything is compared.
    pub(crate) fn compared(&self) -> impl Iterator<Item = &SizedRequest> {
        self.requests.iter().filter(|sized| !sized.answers_only)
    }

    /// Whether there are none.
    pub(crate) const fn is_empty(&self) -> bool {
        self.free.is_empty()
    }

    /// `inputs` with typical sizes.
    pub(crate) fn typical(&self, inputs: &[InputSpec]) -> Vec<InputSpec> {
        self.fixed(inputs, &self.point(|f| f.typical))
    }

    /// Takes those of `requests` that have other than typical sizes.
    pub(crate) fn take_samples(&mut self, inputs: &[InputSpec], requests: &mut Vec<Vec<Tensor>>) {
        let typical = self.typical(inputs);
        let is_typical = |request: &Vec<Tensor>| {
            let mut pairs = request.iter().zip(&typical);
            pairs.all(|(t, i)| t.shape.iter().skip(1).eq(i.value.shape.iter().skip(1)))
                && request.iter().zip(inputs).all(|(t, i)| {
                    let first = i.value.size_at(0);
                    first.is_none_or(|s| t.shape.first() == Some(&s.typical))
                })
        };
        let (kept, sized): (Vec<_>, Vec<_>) = requests.drain(..).partition(is_typical);
        *requests = kept;
        for request in sized {
            let sizes = self.free.iter().map(|free| size_in(free, inputs, &request));
            let sizes: Vec<i64> = sizes.collect();
            self.requests.push(SizedRequest {
                label: format!("{} of a sample", self.label(&sizes)),
                sizes,
                request,
                pair: None,
                answers_only: false,
            });
        }
    }

    /// Draws requests of the smallest sizes, of some in between and of the largest, and tries
    /// them on the model.
    ///
    /// # Errors
    /// The model does not accept them, or the largest exceed the limits.
    pub(crate) fn try_out(
        &mut self,
        source: &mut Source,
        inputs: &[InputSpec],
        typical: &[Tensor],
        seed: u64,
    ) -> Result<(), PrepareError> {
        if self.is_empty() {
            return Ok(());
        }
        // The typical sizes are checked elsewhere, including why the model fails, if it does.
        let request = torch_tensors(typical)?;
        if source.observe(&[], &request).is_err() {
            return Ok(());
        }
        let Ok(graph) = source.graph(&[]) else {
            return Ok(());
        };
        let Ok(at_typical) = graph.cost(&request) else {
            return Ok(());
        };
        let mismatch = |reason: String| PrepareError::input_mismatch(inputs, reason);
        let mut tried = Vec::new();
        let mut add = |sizes: &Self, point: Vec<i64>, answers_only| -> Result<(), PrepareError> {
            let number = FIRST_NUMBER + 2 * tried.len() as u64;
            let drawn = sizes.draw(inputs, point, (seed, number), answers_only);
            let drawn = drawn.map_err(|e| mismatch(e.0))?;
            if let Err(reason) = run(&graph, &drawn.request) {
                return Err(mismatch(format!(
                    "with {} it fails: {reason}; declare bounds within which it takes each \
                     size, and a step where it takes multiples alone, as in h:32..1024/32",
                    drawn.label
                )));
            }
            tried.push(drawn);
            Ok(())
        };
        let least = self.point(|f| bounds(f).0);
        add(self, least.clone(), false)?;
        let at_least = self.draw(inputs, least.clone(), (seed, FIRST_NUMBER), true);
        let at_least = at_least.map_err(|e| mismatch(e.0))?;
        let at_least = graph.cost(&torch_tensors(&at_least.request)?);
        let laws = Laws {
            volume: volume(&self.point(|f| f.typical)),
            typical: at_typical,
            smaller: at_least.ok().map(|cost| (volume(&least), cost)),
        };
        let most = self.point(|f| bounds(f).1);
        if !laws.allow(&most, TRIED) {
            let fits = self.largest(&laws, TRIED);
            return Err(mismatch(format!(
                "a forward with {} takes too much time or memory to be tried; declare smaller \
                 upper bounds, such as {}",
                self.label(&most),
                self.label(&fits)
            )));
        }
        let compared = self.largest(&laws, COMPARED);
        let between = self.between(&least, &compared, seed);
        add(self, between, false)?;
        // Next to the typical sizes: a model that only takes multiples fails on these.
        let next = self.point(beside);
        if next != self.point(|f| f.typical) {
            add(self, next, false)?;
        }
        if compared != most {
            add(self, compared, false)?;
        }
        let answers_only = !laws.allow(&most, COMPARED);
        add(self, most, answers_only)?;
        self.requests.extend(tried);
        Ok(())
    }

    /// Requests along each free size, to find the dimensions that depend on it.
    ///
    /// # Errors
    /// A request cannot be drawn.
    pub(crate) fn lines(
        &self,
        inputs: &[InputSpec],
        seed: u64,
    ) -> Result<Vec<Line>, draw::BadInput> {
        let line = |(place, free): (usize, &FreeSize)| {
            let (min, max) = bounds(free);
            let at = |size: i64| {
                let mut point = self.point(|f| f.typical);
                point[place] = size;
                draw::request(&self.fixed(inputs, &point), seed, 0)
            };
            Ok(Line {
                name: name(free).to_owned(),
                requests: [at(min)?, at(free.typical)?, at(max)?],
            })
        };
        self.free.iter().enumerate().map(line).collect()
    }

    /// The tested sizes, by name.
    pub(crate) fn tried(&self) -> BTreeMap<String, Vec<i64>> {
        let of = |(place, free): (usize, &FreeSize)| {
            let mut sizes: Vec<i64> = self.requests.iter().map(|r| r.sizes[place]).collect();
            sizes.sort_unstable();
            sizes.dedup();
            (name(free).to_owned(), sizes)
        };
        self.free.iter().enumerate().map(of).collect()
    }

    fn draw(
        &self,
        inputs: &[InputSpec],
        point: Vec<i64>,
        (seed, number): (u64, u64),
        answers_only: bool,
    ) -> Result<SizedRequest, draw::BadInput> {
        let fixed = self.fixed(inputs, &point);
        let request = draw::request(&fixed, seed, number)?;
        let values: Vec<ValueSpec> = fixed.iter().map(|i| i.value.clone()).collect();
        let other = draw::request(&fixed, seed, number + 1)?;
        let pair = shapes::batch(&values, &[&request, &other]).filter(|_| !answers_only);
        Ok(SizedRequest {
            label: self.label(&point),
            sizes: point,
            request,
            pair,
            answers_only,
        })
    }

    fn fixed(&self, inputs: &[InputSpec], point: &[i64]) -> Vec<InputSpec> {
        let of = |wanted: &str| {
            let place = self.free.iter().position(|f| name(f) == wanted);
            place.and_then(|place| point.get(place)).copied()
        };
        let fixed = |input: &InputSpec| {
            let mut input = input.clone();
            for size in std::mem::take(&mut input.value.sizes) {
                if let Some(dim) = input.value.shape.get_mut(size.dimension) {
                    *dim = of(name(&size)).unwrap_or(size.typical);
                }
            }
            input
        };
        inputs.iter().map(fixed).collect()
    }

    fn point(&self, of: impl Fn(&FreeSize) -> i64) -> Vec<i64> {
        self.free.iter().map(of).collect()
    }

    /// Between typical sizes and the largest, as large a point as `most` allows.
    fn largest(&self, laws: &Laws, most: Most) -> Vec<i64> {
        let at =
            |share: i32| self.point(|f| power(f, f.typical, bounds(f).1, f64::from(share) / 20.0));
        let allowed = (0..=20).rev().map(at).find(|point| laws.allow(point, most));
        allowed.unwrap_or_else(|| self.point(|f| f.typical))
    }

    /// A point between two, with different shares of the way for each size.
    fn between(&self, least: &[i64], most: &[i64], seed: u64) -> Vec<i64> {
        let shares = draw::shares(seed, self.free.len());
        let ends = least.iter().zip(most).zip(shares);
        let (from, to) = BETWEEN;
        self.free
            .iter()
            .zip(ends)
            .map(|(free, ((&least, &most), share))| {
                power(free, least, most, (to - from).mul_add(share, from))
            })
            .collect()
    }

    fn label(&self, point: &[i64]) -> String {
        let each = self.free.iter().zip(point);
        let each: Vec<String> = each
            .map(|(f, size)| format!("{}={size}", name(f)))
            .collect();
        each.join(", ")
    }
}

/// Estimated costs of forwards, from those at typical sizes and at smaller ones.
struct Laws {
    /// The product of the typical sizes.
    volume: f64,
    typical: Cost,
    smaller: Option<(f64, Cost)>,
}

impl Laws {
    fn allow(&self, point: &[i64], most: Most) -> bool {
        let times = volume(point) / self.volume;
        let grows = |of: fn(&Cost) -> u64| {
            let now = of(&self.typical) as f64;
            // As a power of the size; a constant part hides some of it.
            let power = self.smaller.as_ref().and_then(|(volume, smaller)| {
                let power = (now / of(smaller) as f64).ln() / (self.volume / volume).ln();
                power.is_finite().then_some(power)
            });
            now * times.powf(power.unwrap_or(2.0).clamp(1.0, 3.0))
        };
        grows(|c| c.peak_bytes) <= most.bytes as f64 && grows(|c| c.flops) <= most.flops as f64
    }
}

fn volume(point: &[i64]) -> f64 {
    point.iter().map(|&size| size as f64).product()
}

/// From one size to another, a share of the way in powers, within the bounds.
#[allow(clippy::cast_possible_truncation)] // between two sizes
fn power(free: &FreeSize, from: i64, to: i64, share: f64) -> i64 {
    let size = from as f64 * (to as f64 / from.max(1) as f64).powf(share);
    match &free.bounds {
        Some(bounds) => bounds
            .nearest(size.round() as i64)
            .clamp(from.min(to), to.max(from)),
        None => free.typical,
    }
}

fn bounds(free: &FreeSize) -> (i64, i64) {
    let bounds = free.bounds.as_ref();
    bounds.map_or((free.typical, free.typical), |b| (b.min, b.max))
}

/// The next size above the typical one, or below if that is the largest.
fn beside(free: &FreeSize) -> i64 {
    let Some(bounds) = &free.bounds else {
        return free.typical;
    };
    let both = [bounds.step, -bounds.step].map(|step| free.typical.saturating_add(step));
    let found = both.into_iter().find(|size| bounds.takes(*size));
    found.unwrap_or(free.typical)
}

fn name(free: &FreeSize) -> &str {
    free.bounds.as_ref().map_or("", |b| b.name.as_str())
}

fn size_in(free: &FreeSize, inputs: &[InputSpec], request: &[Tensor]) -> i64 {
    let pairs = inputs.iter().zip(request);
    let mut found = pairs.flat_map(|(input, tensor)| {
        let named = input.value.sizes.iter().filter(|s| name(s) == name(free));
        let sizes = named.filter_map(|s| tensor.shape.get(s.dimension).copied());
        sizes.collect::<Vec<_>>()
    });
    found.next().unwrap_or(free.typical)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamina_model::DataType;

    fn inputs(shapes: &[&[&str]]) -> Vec<InputSpec> {
        let input = |(number, dims): (usize, &&[&str])| InputSpec {
            value: ValueSpec {
                name: format!("x{number}"),
                datatype: DataType::Fp32,
                shape: dims.iter().map(|d| d.parse().unwrap_or(-1)).collect(),
                sizes: dims
                    .iter()
                    .enumerate()
                    .filter_map(|(place, dim)| FreeSize::parse(dim, place).ok())
                    .collect(),
            },
            range: None,
        };
        shapes.iter().enumerate().map(input).collect()
    }

    #[test]
    fn equal_names_take_equal_sizes_in_each_place() {
        let inputs = inputs(&[&["-1", "n:2..8@4", "3"], &["n:2..8@4", "m:5..5"]]);
        let sizes = Sizes::declared(&inputs).unwrap();
        let shapes: Vec<Vec<i64>> = sizes
            .fixed(&inputs, &[7, 5])
            .into_iter()
            .map(|i| i.value.shape)
            .collect();
        assert_eq!(shapes, [vec![-1, 7, 3], vec![7, 5]]);
        assert_eq!(sizes.typical(&inputs)[1].value.shape, [4, 5]);
        let lines = sizes.lines(&inputs, 1).unwrap();
        let of: Vec<_> = lines[0].requests.iter().map(|r| r[0].shape[1]).collect();
        assert_eq!((lines[0].name.as_str(), of), ("n", vec![2, 4, 8]));
    }

    #[test]
    fn a_second_batch_needs_a_name() {
        let said = Sizes::declared(&inputs(&[&["3", "-1"]])).unwrap_err();
        assert!(
            said.contains("`x0`: -1 is the batch and stands first"),
            "{said}"
        );
    }

    #[test]
    fn the_largest_sizes_are_those_that_time_and_memory_allow() {
        let inputs = inputs(&[&["-1", "h:10..1000/10@100", "w:10..1000/10@100"]]);
        let sizes = Sizes::declared(&inputs).unwrap();
        let cost = |peak_bytes| Cost {
            flops: 1,
            largest_flops: 1,
            peak_bytes,
            constant_bytes: 0,
        };
        let laws = Laws {
            volume: 100.0 * 100.0,
            typical: cost(1_000_000),
            smaller: Some((10.0 * 10.0, cost(10_000))),
        };
        let most = |bytes| Most {
            bytes,
            flops: u64::MAX,
        };
        assert_eq!(sizes.largest(&laws, most(200_000_000)), [1000, 1000]);
        let some = sizes.largest(&laws, most(20_000_000));
        assert!(
            some[0] > 300 && some[0] < 460 && some[0] % 10 == 0,
            "{some:?}"
        );
        assert_eq!(sizes.largest(&laws, most(1)), [100, 100]);
        let between = sizes.between(&[10, 10], &[1000, 1000], 3);
        assert!(
            between
                .iter()
                .all(|s| (10..=1000).contains(s) && s % 10 == 0)
        );
        assert_ne!(between[0], between[1]);
    }
}
