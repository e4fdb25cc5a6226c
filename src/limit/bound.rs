//! A bound that is found out: it falls when it was too much, and grows again.

/// What is left of a bound after a cut.
const LEFT: f64 = 0.8;

/// Seconds that a bound takes to come back to what was too much, if it had not been known.
const BACK: f64 = 4.0;

/// A bound that grows fast far from what was too much, and slowly near it.
#[derive(Debug)]
pub(super) struct Bound {
    value: f64,
    /// What was too much, once that is known.
    mark: Option<f64>,
    /// Seconds until it has come back to the mark; negative once it is beyond.
    until: f64,
    /// How long that takes after a cut, and how long at most.
    back: f64,
    longest_back: f64,
}

impl Bound {
    pub(super) fn new(value: f64, longest_back: f64) -> Self {
        Self { value, mark: None, until: 0.0, back: BACK, longest_back }
    }

    pub(super) fn value(&self) -> f64 {
        self.value
    }

    /// Whether it has ever been too much.
    pub(super) fn is_known(&self) -> bool {
        self.mark.is_some()
    }

    /// Sets it for a while: the next growth takes up where the one before ended.
    pub(super) fn set(&mut self, value: f64) {
        self.value = value;
    }

    /// Lets it grow for so many seconds. The curve is CUBIC's (RFC 9438, section 4.2), of the logarithm: it has the same
    /// form for few and for many.
    pub(super) fn grow(&mut self, seconds: f64) {
        if let Some(mark) = self.mark {
            self.until -= seconds;
            self.value = mark * LEFT.powf((self.until / self.back).powi(3));
        }
    }

    /// Cuts it, because `mark` was too much. The more often that is confirmed, the longer the way back.
    pub(super) fn cut(&mut self, mark: f64) {
        let is_confirmed = self.mark.is_some_and(|known| (LEFT..1.0 / LEFT).contains(&(mark / known)));
        self.back = if is_confirmed { (2.0 * self.back).min(self.longest_back) } else { BACK.min(self.longest_back) };
        (self.mark, self.until) = (Some(mark), self.back);
        self.grow(0.0);
    }

    /// Sets it to what is just enough, so that it grows slowly from there.
    pub(super) fn settle(&mut self, mark: f64) {
        (self.mark, self.until) = (Some(mark), 0.0);
        self.grow(0.0);
    }
}
