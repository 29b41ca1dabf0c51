use super::slices::Slices;
use crate::chain::ChainFault;
use lamina_images::{DecodeError, ImageFault};
use lamina_torchscript::{InPlace, RunError, Seen, tells_of_an_index};
use lamina_worker_link::cell::tells_of_memory;
use lamina_worker_link::frame::Port;
use lamina_worker_link::memory::Window;
use lamina_worker_link::message::{Refusal, Region, RunCall, RunReply, aligned};
use std::os::fd::OwnedFd;

/// State of runs between two calls.
#[derive(Debug, Default)]
struct Runs {
    window: Option<Window>,
    /// Outputs that did not fit.
    waiting: Vec<Output>,
}

/// An output copied from libtorch's memory.
#[derive(Debug)]
struct Output {
    region: Region,
    data: Vec<u8>,
}

/// Answers the calls of a lane until its socket closes.
pub(super) fn serve(mut port: Port, slices: &Slices) {
    let mut runs = Runs::default();
    while let Ok((call, descriptor)) = port.receive::<RunCall>() {
        let reply = runs.answer(call, descriptor.as_ref(), slices);
        if port.send(&reply).is_err() {
            return;
        }
    }
}

impl Runs {
    fn answer(&mut self, call: RunCall, descriptor: Option<&OwnedFd>, slices: &Slices) -> RunReply {
        let waiting = std::mem::take(&mut self.waiting);
        let answered = match call {
            RunCall::Run {
                slice,
                inputs,
                free_from,
                arena,
            } => self
                .map(arena, descriptor)
                .and_then(|()| self.run(slice, &inputs, free_from, slices)),
            RunCall::Collect { arena } => self
                .map(Some(arena), descriptor)
                .and_then(|()| self.collect(&waiting)),
        };
        answered.unwrap_or_else(RunReply::Refused)
    }

    fn map(&mut self, arena: Option<u64>, descriptor: Option<&OwnedFd>) -> Result<(), Refusal> {
        let Some(bytes) = arena else {
            return Ok(());
        };
        self.window = None;
        let file = descriptor.ok_or_else(|| broken("the memory did not come"))?;
        let window = Window::new(file, bytes);
        self.window = Some(window.map_err(|e| broken(&format!("no memory: {e}")))?);
        Ok(())
    }

    fn run(
        &mut self,
        number: u64,
        regions: &[Region],
        free_from: u64,
        slices: &Slices,
    ) -> Result<RunReply, Refusal> {
        let slice = slices.get(number);
        let slice = slice.ok_or_else(|| broken("the slice is not there"))?;
        let room = match &mut self.window {
            Some(window) => window.bytes(),
            None => &mut [],
        };
        let (inputs, free) = split(room, regions, free_from)
            .ok_or_else(|| broken("the inputs are not where they should be"))?;
        let placed = slice.run_in_place(inputs, |outputs| place(outputs, free, free_from));
        let placed = placed.map_err(refusal)?;
        Ok(match placed {
            Placed::There(outputs) => RunReply::Done { outputs },
            Placed::Aside(outputs) => {
                let bytes = outputs.iter().map(end_of).max().unwrap_or(0);
                self.waiting = outputs;
                RunReply::NoRoom { bytes }
            }
        })
    }

    fn collect(&mut self, outputs: &[Output]) -> Result<RunReply, Refusal> {
        let room = match &mut self.window {
            Some(window) => window.bytes(),
            None => &mut [],
        };
        for output in outputs {
            let range = output.region.range(room.len());
            let place = range.and_then(|range| room.get_mut(range));
            let place = place.ok_or_else(|| broken("there is still no room"))?;
            place.copy_from_slice(&output.data);
        }
        Ok(RunReply::Done {
            outputs: outputs.iter().map(|o| o.region.clone()).collect(),
        })
    }
}

/// The inputs, which follow each other in `room`, and the free space from `free_from` on.
fn split<'a>(
    room: &'a mut [u8],
    regions: &'a [Region],
    free_from: u64,
) -> Option<(Vec<InPlace<'a>>, &'a mut [u8])> {
    let mut inputs = Vec::with_capacity(regions.len());
    let (mut rest, mut passed) = (room, 0_usize);
    for region in regions {
        let range = region.range(passed + rest.len())?;
        let behind = rest
            .split_at_mut_checked(range.start.checked_sub(passed)?)?
            .1;
        let (data, behind) = behind.split_at_mut_checked(range.len())?;
        (rest, passed) = (behind, range.end);
        inputs.push(InPlace {
            datatype: region.datatype,
            shape: &region.shape,
            data,
        });
    }
    let gap = usize::try_from(free_from).ok()?.checked_sub(passed)?;
    let free = if gap < rest.len() {
        rest.split_at_mut_checked(gap)?.1
    } else {
        &mut []
    };
    Some((inputs, free))
}

enum Placed {
    There(Vec<Region>),
    /// Copied aside, placed from offset 0 on.
    Aside(Vec<Output>),
}

/// Copies `outputs` into `free`, which starts at `free_from`, or aside if they do not fit.
fn place(outputs: &[Seen<'_>], free: &mut [u8], free_from: u64) -> Placed {
    let regions = regions(outputs, 0);
    let needed = regions
        .iter()
        .zip(outputs)
        .map(|(r, o)| r.offset + o.data.len() as u64);
    let needed = needed.max().unwrap_or(0);
    if needed > free.len() as u64 {
        let aside = regions
            .into_iter()
            .zip(outputs)
            .map(|(region, output)| Output {
                region,
                data: output.data.to_vec(),
            });
        return Placed::Aside(aside.collect());
    }
    let moved = regions.into_iter().zip(outputs).map(|(region, output)| {
        // Within `needed`.
        let start = usize::try_from(region.offset).unwrap_or(usize::MAX);
        if let Some(place) = free.get_mut(start..start.saturating_add(output.data.len())) {
            place.copy_from_slice(output.data);
        }
        Region {
            offset: region.offset + free_from,
            ..region
        }
    });
    Placed::There(moved.collect())
}

fn regions(outputs: &[Seen<'_>], from: u64) -> Vec<Region> {
    let mut offset = from;
    let region = |output: &Seen<'_>| {
        let region = Region {
            datatype: output.datatype,
            shape: output.shape.to_vec(),
            offset,
        };
        offset = aligned(offset + output.data.len() as u64);
        region
    };
    outputs.iter().map(region).collect()
}

fn end_of(output: &Output) -> u64 {
    output.region.offset + output.data.len() as u64
}

fn broken(what: &str) -> Refusal {
    Refusal::Broken(what.to_owned())
}

fn refusal(fault: ChainFault) -> Refusal {
    let error = match fault {
        ChainFault::Graph(error) => error,
        ChainFault::Image(fault) => return of_image(&fault),
        ChainFault::Inputs { .. } => return broken(&fault.to_string()),
    };
    match error {
        // oneDNN's error for a kernel that once had no memory: this is permanent.
        RunError::Forward { reason } if reason.contains("Broken promise") => {
            Refusal::Broken(reason)
        }
        RunError::Forward { reason } if tells_of_memory(&reason) => Refusal::Memory(reason),
        // Shapes were checked before, and the probe passed: the request is at fault.
        RunError::Forward { reason } if tells_of_an_index(&reason) => Refusal::Value(reason),
        RunError::OtherWay { reason } => Refusal::Value(reason),
        other => Refusal::Forward(other.to_string()),
    }
}

/// Whoever sent the image chose it.
fn of_image(fault: &ImageFault) -> Refusal {
    match fault {
        ImageFault::Shape { .. } => broken(&fault.to_string()),
        ImageFault::Memory { .. }
        | ImageFault::Decode {
            error: DecodeError::Memory { .. },
            ..
        } => Refusal::Memory(fault.to_string()),
        ImageFault::Decode { .. } | ImageFault::Resize { .. } => Refusal::Value(fault.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamina_model::DataType;

    fn region(bytes: i64, offset: u64) -> Region {
        Region {
            datatype: DataType::Uint8,
            shape: vec![bytes],
            offset,
        }
    }

    #[test]
    fn inputs_are_taken_where_they_are_and_the_rest_is_free() {
        let mut room: Vec<u8> = (0..100).collect();
        let regions = [region(2, 1), region(3, 5)];
        let (inputs, free) = split(&mut room, &regions, 10).unwrap();
        let seen: Vec<&[u8]> = inputs.iter().map(|i| &*i.data).collect();
        assert_eq!(seen, [&[1, 2][..], &[5, 6, 7]]);
        assert_eq!((free.len(), free[0]), (90, 10));
        let mut room = vec![0; 10];
        assert!(split(&mut room, &[], 20).unwrap().1.is_empty());
        for (regions, free_from) in [
            (vec![region(2, 9)], 20),
            (vec![region(2, 4), region(2, 0)], 20),
            (vec![region(2, 4)], 5),
            (vec![region(-1, 4)], 10),
        ] {
            assert!(split(&mut room, &regions, free_from).is_none());
        }
    }

    #[test]
    fn outputs_go_where_there_is_room_and_aside_where_not() {
        let seen = |data| Seen {
            datatype: DataType::Uint8,
            shape: &[3],
            data,
        };
        let outputs = [seen(&[1, 2, 3]), seen(&[4, 5, 6])];
        let mut free = [0; 67];
        let Placed::There(there) = place(&outputs, &mut free, 128) else {
            panic!("there is room");
        };
        assert_eq!(there, [region(3, 128), region(3, 192)]);
        assert_eq!((&free[..3], &free[64..]), (&[1, 2, 3][..], &[4, 5, 6][..]));
        let Placed::Aside(aside) = place(&outputs, &mut free[..66], 128) else {
            panic!("there is none");
        };
        assert_eq!(aside[1].region, region(3, 64));
        assert_eq!(end_of(&aside[1]), 67);
    }

    #[test]
    fn an_image_that_is_none_is_whoevers_who_sent_it() {
        let of = |error: DecodeError| {
            let name = "image".to_owned();
            refusal(ChainFault::Image(ImageFault::Decode {
                name,
                number: 1,
                error,
            }))
        };
        let wanted = "input `image`: image 1: it is neither a JPEG nor a PNG";
        assert_eq!(of(DecodeError::Unknown), Refusal::Value(wanted.to_owned()));
        let memory = of(DecodeError::Memory { bytes: 9 });
        assert!(matches!(memory, Refusal::Memory(_)), "{memory:?}");
    }

    #[test]
    fn a_reason_says_whose_fault_it_is() {
        let of = |reason: &str| {
            let reason = reason.to_owned();
            refusal(RunError::Forward { reason }.into())
        };
        for reason in [
            "index out of range in self",
            "index 9 is out of bounds for dimension 0 with size 5",
            "Index 0 of input takes value 9 which is not in the valid range [0, 5)",
            "out of range: tried to access index 9 on a tensor of 5 elements.",
            "select(): index 9 out of range for tensor of size [5] at dimension 0",
            "Class values must be smaller than num_classes.",
        ] {
            assert_eq!(of(reason), Refusal::Value(reason.to_owned()));
        }
        let reason = "this request takes another way through the network".to_owned();
        let other_way = RunError::OtherWay {
            reason: reason.clone(),
        };
        assert_eq!(refusal(other_way.into()), Refusal::Value(reason));
        let memory = of("[enforce fail] DefaultCPUAllocator: can't allocate memory: 1 TB");
        assert!(matches!(memory, Refusal::Memory(_)), "{memory:?}");
        assert!(matches!(of("Broken promise"), Refusal::Broken(_)));
        let other = of("mat1 and mat2 shapes cannot be multiplied (1x2 and 3x4)");
        assert!(matches!(other, Refusal::Forward(_)), "{other:?}");
    }
}
