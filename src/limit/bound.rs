//! A bound that is measured: it falls when it was too high, and grows again.

/// The part that is left of a bound after a cut.
const LEFT: f64 = 0.8;

/// The seconds that a bound takes to return to a value that was too high for the first time.
const BACK: f64 = 4.0;

/// A bound that grows fast far from the value that was too high, and slowly near it.
#[derive(Debug)]
pub(super) struct Bound {
    value: f64,
    /// The value that was too high, once that is known.
    mark: Option<f64>,
    /// The seconds until the bound has returned to the mark; negative once it is beyond.
    until: f64,
    /// The seconds that the return takes after a cut, and the most that it may take.
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

    /// True if the bound has ever been too high.
    pub(super) fn is_known(&self) -> bool {
        self.mark.is_some()
    }

    /// Sets the bound for a while: the next growth continues where the one before ended.
    pub(super) fn set(&mut self, value: f64) {
        self.value = value;
    }

    /// Lets the bound grow for `seconds`, along CUBIC's curve (RFC 9438, section 4.2) on a logarithmic scale, where it has the
    /// same form for small and for large values.
    pub(super) fn grow(&mut self, seconds: f64) {
        if let Some(mark) = self.mark {
            self.until -= seconds;
            self.value = mark * LEFT.powf((self.until / self.back).powi(3));
        }
    }

    /// Cuts the bound, because `mark` was too high. Each confirmation of the same mark doubles the time to return to it.
    pub(super) fn cut(&mut self, mark: f64) {
        let is_confirmed = self.mark.is_some_and(|known| (LEFT..1.0 / LEFT).contains(&(mark / known)));
        self.back = if is_confirmed { (2.0 * self.back).min(self.longest_back) } else { BACK.min(self.longest_back) };
        (self.mark, self.until) = (Some(mark), self.back);
        self.grow(0.0);
    }

    /// Sets the bound to a value that is just enough, from which it grows slowly.
    pub(super) fn settle(&mut self, mark: f64) {
        (self.mark, self.until) = (Some(mark), 0.0);
        self.grow(0.0);
    }
}
