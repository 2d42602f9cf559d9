//! The headers that a rule requires.
use super::Failure;
use crate::model::Headers;
use crate::policy::HeaderSpec;

/// Every required header is there once and of its shape. Twice is two headers to one reader and a list to
/// another.
pub(super) fn check<'a>(spec: &'a HeaderSpec, headers: &dyn Headers) -> Result<(), Failure<'a>> {
    for (name, shape) in &spec.require {
        let (mut count, mut fits) = (0_usize, false);
        headers.each(name, &mut |value| {
            count += 1;
            fits = std::str::from_utf8(value).is_ok_and(|text| shape.accepts_text(text));
        });
        match (count, fits) {
            (0, _) => return Err(Failure::HeaderMissing(name)),
            (1, true) => {}
            _ => {
                return Err(Failure::HeaderValue {
                    name,
                    expected: shape.to_string(),
                });
            }
        }
    }
    Ok(())
}
