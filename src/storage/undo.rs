//! All or nothing: the steps of a change, each with what undoes it.

use super::error::{Error, Result};

type Step<'a> = (String, Box<dyn FnOnce() -> Result<()> + 'a>);

/// The steps that take back what was done so far.
#[derive(Default)]
pub struct Undo<'a> {
    steps: Vec<Step<'a>>,
}

impl<'a> Undo<'a> {
    /// Runs a change that notes, after each of its steps, what undoes it. If the change fails, what was
    /// noted runs in reverse order. The error names the cause, and each step that could not be undone.
    pub fn run<T>(change: impl FnOnce(&mut Undo<'a>) -> Result<T>) -> Result<T> {
        let mut undo = Undo::default();
        change(&mut undo).map_err(|cause| undo.unwind(cause))
    }

    /// Notes what undoes a step; `what` names the step, and completes "could not be undone: …".
    pub fn push(&mut self, what: impl Into<String>, step: impl FnOnce() -> Result<()> + 'a) {
        self.steps.push((what.into(), Box::new(step)));
    }

    fn unwind(self, cause: Error) -> Error {
        let failed = |(what, step): Step<'_>| step().err().map(|error| format!("{what} ({error})"));
        let left: Vec<_> = self.steps.into_iter().rev().filter_map(failed).collect();
        if left.is_empty() { cause } else { Error::NotUndone(Box::new(cause), left) }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn refused() -> Error {
        Error::Conflict("no".into())
    }

    #[test]
    fn a_failure_undoes_in_reverse_order() {
        let seen = RefCell::new(Vec::new());
        let result: Result<()> = Undo::run(|undo| {
            for step in [1, 2] {
                let seen = &seen;
                undo.push("a step", move || {
                    seen.borrow_mut().push(step);
                    Ok(())
                });
            }
            Err(refused())
        });
        assert_eq!(result, Err(refused()));
        assert_eq!(*seen.borrow(), [2, 1]);
    }

    #[test]
    fn success_undoes_nothing() {
        let result = Undo::run(|undo| {
            undo.push("never", || panic!("undone"));
            Ok(7)
        });
        assert_eq!(result, Ok(7));
    }

    #[test]
    fn what_cannot_be_undone_is_named_and_the_rest_goes_on() {
        let seen = RefCell::new(false);
        let result: Result<()> = Undo::run(|undo| {
            undo.push("the first", || {
                *seen.borrow_mut() = true;
                Ok(())
            });
            undo.push("the second", || Err(Error::Conflict("busy".into())));
            Err(refused())
        });
        assert!(*seen.borrow());
        assert_eq!(result.unwrap_err().to_string(), "no; could not be undone: the second (busy)");
    }
}
