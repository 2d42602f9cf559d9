//! Taking values out of a JSON text that goes on to somebody who must not see them.
use super::json::{Fate, JsonError, Kind, Reader};
use super::pointer::{Active, Followed, Pointer, Pointers};

/// Pointers made ready to be followed through many texts.
#[derive(Debug, Clone)]
pub struct Redactor(Pointers);

/// What came of redacting a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redacted {
    /// The new text; `None` where nothing is to be redacted, and the text can go on as it is.
    pub body: Option<Vec<u8>>,
    /// How many values were replaced.
    pub count: usize,
}

/// Why a text cannot be redacted. It must not go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedactError {
    /// Another reader could find other values in it.
    #[error("the body cannot be read without doubt: {0}")]
    Ambiguous(#[from] JsonError),
    /// More pointers than are followed at once.
    #[error("more than 256 pointers")]
    TooManyPointers,
}

impl Redactor {
    /// Makes pointers ready.
    ///
    /// # Errors
    /// [`RedactError::TooManyPointers`].
    pub fn new(pointers: &[Pointer]) -> Result<Self, RedactError> {
        Pointers::new(pointers)
            .map(Self)
            .ok_or(RedactError::TooManyPointers)
    }

    /// The pointers, as they were made ready.
    pub fn pointers(&self) -> &[Pointer] {
        self.0.list.as_slice()
    }

    /// Replaces strings at the pointers by `"[redacted]"` and all other values by `null`. The rest stays
    /// byte for byte.
    ///
    /// # Errors
    /// [`RedactError::Ambiguous`] where the text is not strict JSON.
    pub fn redact(&self, body: &[u8]) -> Result<Redacted, RedactError> {
        let mut reader = Reader::minding_case(body)?;
        let mut count = 0;
        self.value(&mut reader, &self.0.root(), &mut count)?;
        let body = reader.end()?;
        Ok(Redacted { body, count })
    }

    fn value(
        &self,
        reader: &mut Reader<'_>,
        active: &Active,
        count: &mut usize,
    ) -> Result<(), JsonError> {
        if active.is_empty() {
            return reader.skip();
        }
        match reader.kind()? {
            Kind::Object => reader
                .object(|reader, name| self.follow(reader, self.0.member(active, name), count)),
            Kind::Array => {
                let mut number = 0;
                reader.array(|reader| {
                    let followed = self.0.element(active, number);
                    number += 1;
                    self.follow(reader, followed, count)
                })
            }
            _ => reader.skip(),
        }
    }

    fn follow(
        &self,
        reader: &mut Reader<'_>,
        followed: Followed<'_>,
        count: &mut usize,
    ) -> Result<Fate, JsonError> {
        match followed {
            Followed::On(active) => self.value(reader, &active, count)?,
            Followed::Hit(_) => {
                let kind = reader.kind()?;
                let start = reader.position();
                reader.skip()?;
                let with = match kind {
                    Kind::Text => "\"[redacted]\"",
                    _ => "null",
                };
                reader.replace_from(start, with);
                *count += 1;
            }
        }
        Ok(Fate::Keep)
    }
}

/// Redacts one text, see [`Redactor::redact`].
///
/// # Errors
/// Where the text is not strict JSON, or there are too many pointers.
pub fn redact(body: &[u8], pointers: &[Pointer]) -> Result<Redacted, RedactError> {
    Redactor::new(pointers)?.redact(body)
}
