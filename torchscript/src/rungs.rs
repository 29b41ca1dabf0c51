//! Where to cut, and the whole model's values there: one rung at a time.

use crate::PrepareError;
use crate::cuts;
use crate::draw;
use crate::ffi::{Analysis, Graph, Kind, Live, Observation, Source, TorchError, Watched};
use crate::forward::{first_difference, run, torch_tensors};
use crate::looks::{Looks, can_cross, check_outputs, loosen, price, unsent};
use crate::names::{self, Names};
use crate::retrace::Original;
use crate::shapes::{self, Shapes};
use crate::sized::{Line, Sizes};
use crate::tensors::max_abs_diff;
use lamina_model::{Binding, InputSpec, OutputStructure, Rung, Tensor, ValueSpec};
use std::collections::BTreeSet;

/// A cut with more tensors is made only if it divides heavy operations.
const FEW_TENSORS: usize = 4;
/// How often cuts are rechosen without those of unknown shapes.
const ROUNDS: usize = 3;

/// The ways of cutting a model well, the best first: unchanged, then once more retraced.
pub(crate) const WELL: [Step; 2] = [Step::Direct, Step::Typed];
/// The remaining ways, if none of them holds or all leave too much in one block, before the whole.
pub(crate) const FEW: [Step; 2] = [Step::FewTyped, Step::FewDirect];

/// A rung to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// One tensor at each cut, where that cuts the model well enough.
    Direct,
    /// Everything that can be sent at each cut.
    Typed,
    /// Everything that can be sent at each cut, although a block has most of the work.
    FewTyped,
    /// One tensor at each cut, however few cuts there are.
    FewDirect,
    /// No cut.
    Whole,
}

/// Where to cut, and the whole model's values there.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) rung: Rung,
    pub(crate) cuts: Vec<usize>,
    pub(crate) inputs: Vec<ValueSpec>,
    /// The outputs of each block; the last one's are the model's outputs.
    pub(crate) values: Vec<Vec<ValueSpec>>,
    pub(crate) structure: OutputStructure,
    /// Its requests: the trial's, and both as a batch if the model leaves that free.
    pub(crate) requests: Vec<Vec<Tensor>>,
    /// For each request and block, the required outputs.
    pub(crate) reference: Vec<Vec<Vec<Tensor>>>,
}

/// A plan, or why this rung has none; empty if another rung said it.
pub(crate) type Planned = Result<Plan, String>;

/// A model with its test requests.
#[derive(Debug)]
pub(crate) struct Trial<'a> {
    pub(crate) source: Source,
    pub(crate) analysis: Analysis,
    pub(crate) declared: Vec<ValueSpec>,
    /// The declaration.
    pub(crate) inputs: &'a [InputSpec],
    /// The same with typical sizes.
    pub(crate) typical: Vec<InputSpec>,
    /// The free sizes besides the batch.
    pub(crate) sizes: Sizes,
    /// Two different requests of batch 1.
    pub(crate) requests: Vec<Vec<Tensor>>,
    /// Further requests of batch 1 that the model must accept.
    pub(crate) more: Vec<Vec<Tensor>>,
    /// Whether these and the two are the user's own.
    pub(crate) are_samples: bool,
    /// Cuts that were tried and gave other answers.
    pub(crate) failed: Vec<Vec<usize>>,
    /// Rungs whose cuts are correct but leave too much in one block, with its share of the FLOPs.
    pub(crate) lopsided: Vec<(Rung, f64)>,
    /// The nest that its outputs must have, if it is retraced.
    pub(crate) structure: Option<OutputStructure>,
    /// The type of a tensor between two heavy operations that cannot be sent, if one was seen.
    pub(crate) unsent: Option<String>,
    /// The result of [`Trial::watch`].
    pub(crate) watched: Watched,
    /// Further requests, if they may take another path: those of batch 1, and some as batches.
    pub(crate) unlike: Unlike,
    /// The bindings of its arguments.
    pub(crate) bindings: Vec<Binding>,
}

/// A request with the values that must cross each cut, and its answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known<'a> {
    pub(crate) request: &'a [Tensor],
    /// For each block, its required outputs.
    pub(crate) reference: &'a [Vec<Tensor>],
}

impl<'a> Known<'a> {
    /// The values that cross into a block.
    pub(crate) fn crossing(&self, block: usize) -> &'a [Tensor] {
        match block.checked_sub(1) {
            None => self.request,
            Some(before) => &self.reference[before],
        }
    }
}

impl Plan {
    /// The model's required answers to a request.
    pub(crate) fn answers(&self, request: usize) -> &[Tensor] {
        self.reference[request].last().map_or(&[], Vec::as_slice)
    }

    /// Its test requests.
    pub(crate) fn known(&self) -> impl Iterator<Item = Known<'_>> {
        let pairs = self.requests.iter().zip(&self.reference);
        pairs.map(|(request, reference)| Known { request, reference })
    }

    /// The model's outputs.
    pub(crate) fn outputs(&self) -> &[ValueSpec] {
        self.values.last().map_or(&[], Vec::as_slice)
    }

    /// Largest difference between the answers to the two requests.
    pub(crate) fn telling_diff(&self) -> f64 {
        let pairs = self.answers(0).iter().zip(self.answers(1));
        let largest = pairs.map(|(a, b)| max_abs_diff(a, b)).fold(0.0, f64::max);
        // Outputs whose shapes depend on the values differ for sure; JSON has no infinity.
        largest.min(f64::MAX)
    }
}

impl Trial<'_> {
    /// Observes the model's values in a few forwards, and bars the cuts at which the structure
    /// or size of a live value depends on the request. Call it before the rest.
    ///
    /// # Errors
    /// A request cannot be drawn.
    pub(crate) fn watch(&mut self, seed: u64) -> Result<(), PrepareError> {
        if self.analysis.writes_constants {
            return Ok(());
        }
        let [first, second] = self.requests.as_slice() else {
            return Ok(());
        };
        let mut batches = vec![torch_tensors(first)?];
        for rows in [&[first, second][..], &[first, second, first]] {
            if let Some(batch) = shapes::batch(&self.declared, rows) {
                batches.push(torch_tensors(&batch)?);
            }
        }
        let lines = self.lines(seed)?;
        let watched = self.source.watch(&batches, &lines);
        let Ok(watched) = watched.or_else(|_| self.source.watch(&batches[..1], &lines)) else {
            // The model fails, and the next caller reports why.
            self.analysis.cuts.clear();
            return Ok(());
        };
        if watched.may_differ {
            self.unlike = unlike(&self.typical, &self.declared, first, seed)
                .map_err(|e| self.mismatch(e.0))?;
        }
        let unsteady: Vec<usize> = watched.unsteady.iter().map(|u| u.at).collect();
        self.bar(&unsteady);
        self.watched = watched;
        Ok(())
    }

    /// See [`Sizes::lines`].
    #[allow(clippy::type_complexity)] // taken apart at once
    fn lines(&self, seed: u64) -> Result<Vec<(String, [Vec<tch::Tensor>; 3])>, PrepareError> {
        let lines = self.sizes.lines(self.inputs, seed);
        let lines = lines.map_err(|e| self.mismatch(e.0))?;
        let torch = |line: Line| {
            let [least, typical, most] = &line.requests;
            let requests = [
                torch_tensors(least)?,
                torch_tensors(typical)?,
                torch_tensors(most)?,
            ];
            Ok((line.name, requests))
        };
        lines.into_iter().map(torch).collect()
    }

    /// Excludes `cuts` from every plan from now on.
    pub(crate) fn bar(&mut self, cuts: &[usize]) {
        self.analysis.cuts.retain(|c| !cuts.contains(&c.at));
    }

    /// The plan of one rung.
    ///
    /// # Errors
    /// The model itself fails, or cannot be served.
    pub(crate) fn plan(&mut self, step: Step) -> Result<Planned, PrepareError> {
        if step == Step::Whole {
            return self.planned(Rung::Whole, Vec::new());
        }
        if let Some(reason) = cuts::reason_for_whole(&self.analysis) {
            let said = FEW.contains(&step);
            return Ok(Err(if said { String::new() } else { reason }));
        }
        let direct = cuts::direct(&self.analysis);
        let planned = match step {
            Step::Direct if !cuts::suffice(&self.analysis, &direct) => {
                return Ok(Err(self.too_few(&direct)));
            }
            Step::FewDirect if direct.is_empty() => return Ok(Err(String::new())),
            Step::FewTyped if !self.is_typed_better() => return Ok(Err(String::new())),
            Step::Typed | Step::FewTyped => self.typed()?,
            _ => self.planned(Rung::Direct, direct)?,
        };
        Ok(planned.and_then(|plan| self.worth_a_try(step, plan)))
    }

    /// Refuses a plan that is no better than another rung's.
    fn worth_a_try(&self, step: Step, plan: Plan) -> Planned {
        if self.failed.contains(&plan.cuts) {
            return Err(String::new());
        }
        let direct = cuts::direct(&self.analysis);
        let most = |cuts: &[usize]| cuts::heaviest(&self.analysis, cuts);
        if step == Step::Direct && !cuts::suffice(&self.analysis, &plan.cuts) {
            return Err(self.too_few(&plan.cuts));
        }
        if step == Step::Typed && !self.failed.contains(&direct) {
            if self.share(Rung::Direct).is_some() && plan.cuts != direct {
                return Ok(plan);
            }
            if most(&plan.cuts) >= most(&direct) {
                let said = self.share(Rung::Direct).is_some();
                return Err(if said {
                    String::new()
                } else {
                    self.too_few(&direct)
                });
            }
        }
        Ok(plan)
    }

    /// The share of the FLOPs in one block, if the cuts of `rung` are lopsided.
    fn share(&self, rung: Rung) -> Option<f64> {
        let found = self.lopsided.iter().find(|(at, _)| *at == rung);
        found.map(|(_, share)| *share)
    }

    /// Whether typed cuts, lopsided as they are, are better than direct ones.
    fn is_typed_better(&self) -> bool {
        match (self.share(Rung::Typed), self.share(Rung::Direct)) {
            (Some(typed), Some(direct)) => typed < direct,
            (typed, _) => typed.is_some(),
        }
    }

    /// The smallest share of the FLOPs in the heaviest block over all cuts that were tried; 1 if
    /// none were.
    pub(crate) fn best_share(&self) -> f64 {
        let shares = self.lopsided.iter().map(|(_, share)| *share);
        shares.fold(1.0, f64::min)
    }

    fn too_few(&self, cuts: &[usize]) -> String {
        let heavy = self.analysis.heavy.len();
        match cuts::heaviest(&self.analysis, cuts) {
            most if most == heavy => {
                format!("no place between its {heavy} heavy operations has one live tensor alone")
            }
            most => format!(
                "cuts with one live tensor alone leave {most} of its {heavy} heavy operations in \
                 one block"
            ),
        }
    }

    /// Typed cuts: of everything that can be sent, those with the fewest bytes.
    fn typed(&mut self) -> Result<Planned, PrepareError> {
        let candidates = cuts::between_heavy(&self.analysis);
        let Some(seen) = self.observe(&candidates)? else {
            return Ok(Err("its values cannot be looked at".into()));
        };
        let mut places: Vec<(usize, u64)> = candidates
            .iter()
            .zip(&seen)
            .filter_map(|(&at, seen)| Some((at, price(seen.as_ref()?))))
            .collect();
        let wide: BTreeSet<usize> = candidates
            .iter()
            .zip(&seen)
            .filter(|(_, seen)| seen.as_ref().is_some_and(|live| self.is_wide(live)))
            .map(|(&at, _)| at)
            .collect();
        let best = |trial: &Self, places: &[(usize, u64)]| {
            let cheapest = cuts::cheapest(&trial.analysis, places);
            cuts::thinned(&trial.analysis, &cheapest, |cut| wide.contains(&cut))
        };
        for _ in 0..ROUNDS {
            let chosen = best(self, &places);
            let planned = self.planned(Rung::Typed, chosen.clone())?;
            let Ok(plan) = planned else {
                return Ok(planned);
            };
            if plan.cuts == chosen {
                return Ok(Ok(plan));
            }
            places.retain(|(at, _)| plan.cuts.contains(at) || !chosen.contains(at));
        }
        let chosen = best(self, &places);
        self.planned(Rung::Typed, chosen)
    }

    /// The live values at each of `cuts`; `None` if their structure differs between requests.
    /// `None` for all if that cannot be observed.
    fn observe(&mut self, cuts: &[usize]) -> Result<Option<Vec<Option<Vec<Live>>>>, PrepareError> {
        let Ok(looks) = self.looks(cuts)? else {
            return Ok(None);
        };
        let mut live = looks.first.cuts.iter().flatten();
        self.unsent = live.find_map(|l| unsent(&l.layout).map(str::to_owned));
        let usable =
            looks.first.cuts.iter().enumerate().map(|(cut, live)| {
                (looks.agree(cut) && self.can_cross(live)).then(|| live.clone())
            });
        Ok(Some(usable.collect()))
    }

    /// Observations of both requests, of both as a batch, and of some unlike them if the model may
    /// take another path.
    fn looks(&mut self, cuts: &[usize]) -> Result<Result<Looks, String>, PrepareError> {
        let mut seen = Vec::new();
        for (number, request) in self.requests.iter().chain(&self.more).enumerate() {
            let request = torch_tensors(request)?;
            match self.source.observe(cuts, &request) {
                Ok(observation) => seen.push(observation),
                Err(error) => return Ok(Err(self.of_request(number, error.reason()))),
            }
        }
        let mut looks = Looks {
            first: seen.remove(0),
            at_one: seen,
            batches: Vec::new(),
            sized: Vec::new(),
        };
        for sized in self.sizes.compared() {
            let request = torch_tensors(&sized.request)?;
            match self.source.observe(cuts, &request) {
                Ok(observation) => looks.sized.push(observation),
                Err(error) => return Ok(Err(format!("with {}: {}", sized.label, error.reason()))),
            }
        }
        // A model need not accept these.
        for request in &self.unlike.0 {
            let request = torch_tensors(request)?;
            looks.at_one.extend(self.source.observe(cuts, &request));
        }
        for batch in self.pair().iter().chain(&self.unlike.1) {
            let batch = torch_tensors(batch)?;
            looks.batches.extend(self.source.observe(cuts, &batch));
        }
        Ok(Ok(looks))
    }

    /// The plan with those of `cuts` that hold for every request.
    fn planned(&mut self, rung: Rung, cuts: Vec<usize>) -> Result<Planned, PrepareError> {
        let looks = self.looks(&cuts)?.map_err(|reason| self.mismatch(reason))?;
        check_outputs(&looks, 1 + self.more.len())?;
        let usable: BTreeSet<usize> = (0..cuts.len())
            .filter(|&cut| looks.agree(cut) && self.can_cross(&looks.first.cuts[cut]))
            .collect();
        let (cuts, seen) = kept(cuts, looks.first.clone(), &usable);
        let names = names::name(&self.analysis, &self.declared, &seen);
        if self
            .structure
            .as_ref()
            .is_some_and(|s| *s != names.structure)
        {
            return Ok(Err("its outputs would lose their names".into()));
        }
        let (requests, answers, mut shapes) = self.reference(&cuts, &names)?;
        let told: BTreeSet<usize> = (0..cuts.len())
            .filter(|&i| shapes.at_cuts[i].is_some())
            .collect();
        if told.len() < cuts.len() {
            // Without them other values are the first with their names.
            let (cuts, _) = kept(cuts, seen, &told);
            return self.planned(rung, cuts);
        }
        if cuts.is_empty() && rung != Rung::Whole {
            return Ok(Err(self.nothing_steady()));
        }
        loosen(&mut shapes.outputs, &looks);
        let mut values: Vec<Vec<ValueSpec>> = shapes.at_cuts.into_iter().flatten().collect();
        values.push(shapes.outputs);
        Ok(Ok(Plan {
            rung,
            cuts,
            inputs: shapes.inputs,
            requests,
            reference: answers.into_iter().map(|a| split(a, &values)).collect(),
            values,
            structure: names.structure,
        }))
    }

    fn nothing_steady(&self) -> String {
        let reason = "no value between its blocks has a type and shape that hold for every request";
        match (self.watched.unsteady.first(), &self.unsent) {
            (Some(unsteady), _) => format!("{reason}: {}", unsteady.reason),
            (None, Some(datatype)) => {
                format!(
                    "between its blocks are tensors of the type {datatype}, which cannot be sent"
                )
            }
            (None, None) => reason.into(),
        }
    }

    /// Both requests, and both as a batch if the model leaves that free; for each the values of the
    /// whole model at `cuts` and its outputs; and their shapes for any batch.
    #[allow(clippy::type_complexity)] // taken apart at once
    fn reference(
        &mut self,
        cuts: &[usize],
        names: &Names,
    ) -> Result<(Vec<Vec<Tensor>>, Vec<Vec<Tensor>>, Shapes), PrepareError> {
        let graph = self
            .source
            .graph(cuts)
            .map_err(|e: TorchError| PrepareError::Torch {
                step: "building the whole model",
                reason: e.reason(),
            })?;
        let mut answers = self
            .requests
            .iter()
            .enumerate()
            .map(|(number, request)| {
                run(&graph, request).map_err(|r| self.mismatch(self.of_request(number, r)))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let expected: usize =
            names.at_cuts.iter().map(Vec::len).sum::<usize>() + names.outputs.len();
        if let Some(answer) = answers.iter().find(|a| a.len() != expected) {
            return Err(PrepareError::Unsupported {
                reason: format!("it gives {} tensors, then {expected}", answer.len()),
            });
        }
        let again = run(&graph, &self.requests[0]).map_err(|r| self.mismatch(r))?;
        if let Some((_, difference)) = first_difference(&answers[0], &again) {
            return Err(PrepareError::Unsupported {
                reason: format!(
                    "two equal requests get answers that differ by {difference:e}: it keeps \
                     state or draws random numbers"
                ),
            });
        }
        let pair = self.pair();
        let at_two = pair.as_ref().and_then(|pair| run(&graph, pair).ok());
        let rows_first = !self.analysis.heads.is_empty();
        let mut shapes = shapes::generalize(
            &self.declared,
            names,
            &answers,
            at_two.as_deref(),
            rows_first,
        );
        self.free_sizes(&graph, names, &answers[0], &mut shapes)?;
        let mut requests = self.requests.clone();
        // Free only if the batch ran and gave both answers.
        if shapes::is_batch_free(&shapes.inputs) {
            requests.extend(pair);
            answers.extend(at_two);
        }
        Ok((requests, answers, shapes))
    }

    /// Frees the dimensions that depend on free sizes, as observed with other requests.
    fn free_sizes(
        &self,
        graph: &Graph,
        names: &Names,
        typical: &[Tensor],
        shapes: &mut Shapes,
    ) -> Result<(), PrepareError> {
        let mut others = Vec::new();
        for sized in self.sizes.compared() {
            let values = run(graph, &sized.request)
                .map_err(|reason| self.mismatch(format!("with {}: {reason}", sized.label)))?;
            if values.len() != typical.len() {
                return Err(PrepareError::Unsupported {
                    reason: format!(
                        "it gives {} tensors, with {} {}",
                        typical.len(),
                        sized.label,
                        values.len()
                    ),
                });
            }
            others.push(values.into_iter().map(|t| t.shape).collect());
        }
        shapes::free_sizes(shapes, names, typical, &others);
        for (spec, declared) in shapes.inputs.iter_mut().zip(self.inputs) {
            for size in &declared.value.sizes {
                spec.shape[size.dimension] = -1;
            }
            spec.sizes.clone_from(&declared.value.sizes);
        }
        Ok(())
    }

    /// The required outputs of the blocks of `plan` for one of the further requests.
    ///
    /// # Errors
    /// The model fails with it.
    pub(crate) fn answer_to_more(
        &mut self,
        number: usize,
        plan: &Plan,
    ) -> Result<Vec<Vec<Tensor>>, PrepareError> {
        let answer = self.answer(&self.more[number].clone(), plan)?;
        answer
            .map_err(|reason| self.mismatch(self.of_request(self.requests.len() + number, reason)))
    }

    /// The required outputs of the blocks of `plan` for `request`; inside, why the model fails with
    /// it.
    ///
    /// # Errors
    /// The whole model cannot be built.
    pub(crate) fn answer(
        &mut self,
        request: &[Tensor],
        plan: &Plan,
    ) -> Result<Result<Vec<Vec<Tensor>>, String>, PrepareError> {
        let graph = self
            .source
            .graph(&plan.cuts)
            .map_err(|e: TorchError| PrepareError::Torch {
                step: "building the whole model",
                reason: e.reason(),
            })?;
        Ok(run(&graph, request).map(|answer| split(answer, &plan.values)))
    }

    /// The bindings of the model's arguments; empty if these are its inputs unchanged.
    pub(crate) fn bindings(&self) -> Vec<Binding> {
        let is_plain = self.bindings.iter().all(|b| *b == Binding::Tensor);
        if is_plain {
            Vec::new()
        } else {
            self.bindings.clone()
        }
    }

    /// The whole model's answers.
    ///
    /// # Errors
    /// Why it fails.
    pub(crate) fn outputs(&mut self, request: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let graph = self.source.graph(&[]).map_err(|e| e.reason())?;
        run(&graph, request)
    }

    /// Both requests as one batch, if the declaration leaves the batch free.
    fn pair(&self) -> Option<Vec<Tensor>> {
        shapes::batch(&self.declared, &self.requests.iter().collect::<Vec<_>>())
    }

    /// The retraced model, with the reason if it is only for a batch of 1.
    ///
    /// # Errors
    /// The model itself fails; inside, why a trace is unusable.
    #[allow(clippy::type_complexity)] // taken apart at once
    pub(crate) fn retraced(
        &mut self,
        seed: u64,
    ) -> Result<Result<(Self, Option<String>), String>, PrepareError> {
        if self.analysis.writes_constants {
            return Ok(Err("it overwrites its own weights".into()));
        }
        if !self.analysis.heads.is_empty() {
            return Ok(Err("a trace does not show where its side exits hang".into()));
        }
        let whole = match self.plan(Step::Whole)? {
            Ok(whole) => whole,
            Err(reason) => return Ok(Err(reason)),
        };
        // Mixed batches hold for all inputs or for none.
        let declared: Vec<ValueSpec> = if shapes::is_batch_free(&whole.inputs) {
            self.declared.clone()
        } else {
            self.declared.iter().map(shapes::at_batch_one).collect()
        };
        let original = Original {
            source: &mut self.source,
            inputs: &declared,
            requests: &self.requests,
            more: &self.more,
            answers: (0..self.requests.len()).map(|i| whole.answers(i)).collect(),
            fixes_trace: self.watched.fixes_trace.clone(),
            sized: self
                .sizes
                .compared()
                .map(|s| s.request.as_slice())
                .collect(),
            sizes_fix_trace: self.watched.sizes_fix_trace.clone(),
        };
        let traced = match original.trace() {
            Ok(traced) => traced,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let declared = match traced.fixed_batch {
            Some(_) => declared.iter().map(shapes::at_batch_one).collect(),
            None => declared,
        };
        let mut trial = Self {
            source: traced.source,
            analysis: traced.analysis,
            declared,
            inputs: self.inputs,
            typical: self.typical.clone(),
            sizes: self.sizes.clone(),
            requests: self.requests.clone(),
            more: self.more.clone(),
            are_samples: self.are_samples,
            failed: Vec::new(),
            lopsided: Vec::new(),
            unsent: None,
            structure: Some(whole.structure),
            watched: Watched::default(),
            unlike: Default::default(),
            bindings: self.bindings.clone(),
        };
        trial.watch(seed)?;
        Ok(Ok((trial, traced.fixed_batch)))
    }

    /// Whether more than a few tensors are live, besides the answers of side exits.
    fn is_wide(&self, live: &[Live]) -> bool {
        let rest = live.iter().filter(|l| !self.is_side_exit(l.value));
        let wires = rest.flat_map(|l| l.layout.wires());
        wires.filter(|(kind, _)| *kind == Kind::Tensor).count() > FEW_TENSORS
    }

    /// Whether all of `live` can be sent, and is little enough besides the answers of side exits.
    fn can_cross(&self, live: &[Live]) -> bool {
        let (sides, rest): (Vec<&Live>, Vec<&Live>) =
            live.iter().partition(|l| self.is_side_exit(l.value));
        let all_tensors = sides
            .iter()
            .flat_map(|l| l.layout.wires())
            .all(|(kind, _)| kind == Kind::Tensor);
        all_tensors && can_cross(rest)
    }

    fn is_side_exit(&self, value: u64) -> bool {
        let sides = self.analysis.heads.len();
        self.analysis
            .outputs
            .iter()
            .take(sides)
            .any(|&o| o == value)
    }

    /// `reason`, with the number of the user's request that caused it.
    fn of_request(&self, number: usize, reason: String) -> String {
        if self.are_samples {
            format!("request {number} of the samples: {reason}")
        } else {
            reason
        }
    }

    pub(crate) fn mismatch(&self, reason: String) -> PrepareError {
        PrepareError::input_mismatch(self.inputs, reason)
    }
}

/// Requests of batch 1 unlike those that a model is first tried with, and batches of them.
type Unlike = (Vec<Vec<Tensor>>, Vec<Vec<Tensor>>);

fn unlike(
    inputs: &[InputSpec],
    declared: &[ValueSpec],
    first: &Vec<Tensor>,
    seed: u64,
) -> Result<Unlike, draw::BadInput> {
    let alone = draw::unlike(inputs, seed)?;
    let mixed: Vec<&Vec<Tensor>> = std::iter::once(first)
        .chain(&alone)
        .cycle()
        .take(8)
        .collect();
    let sizes = [3, 4, 5, 8];
    let batches = sizes
        .iter()
        .filter_map(|&n| shapes::batch(declared, &mixed[..n]));
    let batches = batches.collect();
    Ok((alone, batches))
}

/// `cuts` and the observations there, restricted to `usable` indices.
fn kept(
    cuts: Vec<usize>,
    seen: Observation,
    usable: &BTreeSet<usize>,
) -> (Vec<usize>, Observation) {
    let at = seen.cuts.into_iter().enumerate();
    let seen = Observation {
        cuts: at
            .filter(|(i, _)| usable.contains(i))
            .map(|(_, l)| l)
            .collect(),
        ..seen
    };
    let cuts = cuts.into_iter().enumerate();
    let cuts = cuts.filter(|(i, _)| usable.contains(i)).map(|(_, c)| c);
    (cuts.collect(), seen)
}

/// A list of tensors as one list per block.
fn split(tensors: Vec<Tensor>, values: &[Vec<ValueSpec>]) -> Vec<Vec<Tensor>> {
    let mut rest = tensors.into_iter();
    let mut next = |count: usize| rest.by_ref().take(count).collect();
    values.iter().map(|v| next(v.len())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(v: u8) -> Tensor {
        Tensor {
            datatype: lamina_model::DataType::Uint8,
            shape: vec![1],
            data: vec![v].into(),
        }
    }

    #[test]
    fn tensors_are_dealt_out_to_the_blocks_that_give_them() {
        let spec = |name: &str| ValueSpec {
            name: name.into(),
            datatype: lamina_model::DataType::Uint8,
            shape: vec![1],
            sizes: Vec::new(),
        };
        let values = [vec![spec("a")], vec![spec("a"), spec("b")]];
        let dealt = split((0..3).map(tensor).collect(), &values);
        assert_eq!(dealt, [vec![tensor(0)], vec![tensor(1), tensor(2)]]);
    }
}
