//! The results of each case, and whether they keep the promise.

use anyhow::{Result, ensure};
use std::fmt;

/// The design's promise for a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Promise {
    /// Every request is answered in time and correctly.
    NothingLost,
    /// Requests may be lost meanwhile; none is answered wrongly, and all are answered afterwards.
    NothingWrong,
}

/// Results of one case.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) case: &'static str,
    pub(crate) promise: Promise,
    pub(crate) sent: usize,
    pub(crate) lost: usize,
    pub(crate) wrong: usize,
    /// From the first loss to the last; 0 if nothing was lost.
    pub(crate) losing_seconds: f64,
    /// The longest wait for an answer.
    pub(crate) longest_seconds: f64,
    /// From the start until hosts and model were ready again.
    pub(crate) settled_seconds: f64,
    /// Requests lost after recovery.
    pub(crate) lost_afterwards: usize,
    pub(crate) first_loss: Option<String>,
    pub(crate) note: String,
}

impl Row {
    /// For a case without load.
    pub(crate) fn apart(case: &'static str, settled_seconds: f64, note: String) -> Self {
        Self {
            case,
            promise: Promise::NothingWrong,
            sent: 0,
            lost: 0,
            wrong: 0,
            losing_seconds: 0.0,
            longest_seconds: 0.0,
            settled_seconds,
            lost_afterwards: 0,
            first_loss: None,
            note,
        }
    }

    /// An error if the promise was broken.
    pub(crate) fn judge(&self) -> Result<()> {
        ensure!(self.wrong == 0, "{} wrong answers", self.wrong);
        let why = self.first_loss.as_deref().unwrap_or_default();
        let after = self.lost_afterwards;
        ensure!(after == 0, "{after} lost after all was well again; {why}");
        let lost = self.lost;
        let may_lose = self.promise == Promise::NothingWrong;
        ensure!(lost == 0 || may_lose, "{lost} of {} lost; {why}", self.sent);
        Ok(())
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<42}{:>6}{:>6}{:>7}{:>9.1} s{:>9.2} s{:>9.1} s  {}",
            self.case,
            self.sent,
            self.lost,
            self.wrong,
            self.losing_seconds,
            self.longest_seconds,
            self.settled_seconds,
            self.note
        )?;
        if let Some(why) = &self.first_loss {
            let short: String = why.chars().take(200).collect();
            write!(f, "\n    first loss: {}", short.replace('\n', " "))?;
        }
        Ok(())
    }
}

/// All rows with a header.
pub(crate) fn print(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<42}{:>6}{:>6}{:>7}{:>11}{:>11}{:>11}  NOTE\n",
        "CASE", "SENT", "LOST", "WRONG", "LOSING FOR", "LONGEST", "SETTLED"
    );
    for row in rows {
        text += &format!("{row}\n");
    }
    text
}
