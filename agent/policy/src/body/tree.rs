//! A body as a tree, for what looks at it as a whole: conditions and schemas.
use super::json::{Fate, JsonError, Kind, Read, Reader};
use serde_json::{Map, Number, Value};

/// Memory that a tree may take, by a rough count from above.
const MAX_COST: usize = 64 << 20;
/// What a value costs, and what an object costs besides its members: its keys are kept in nodes of eleven.
const VALUE: usize = 2 * size_of::<Value>();
const OBJECT: usize = 11 * (size_of::<String>() + size_of::<Value>()) + 64;

/// Reads a text as strictly as a check does. Integers that do not fit 64 bits are refused: readers round them.
pub(crate) fn json(bytes: &[u8]) -> Result<Value, JsonError> {
    let mut reader = Reader::new(bytes)?;
    let value = Budget(MAX_COST).value(&mut reader)?;
    reader.end()?;
    Ok(value)
}

/// What may still be spent.
struct Budget(usize);

impl Budget {
    fn spend(&mut self, cost: usize) -> Read<()> {
        self.0 = self.0.checked_sub(cost).ok_or(JsonError::TooManyValues)?;
        Ok(())
    }

    fn value(&mut self, reader: &mut Reader<'_>) -> Read<Value> {
        self.spend(VALUE)?;
        match reader.kind()? {
            Kind::Object => {
                self.spend(OBJECT)?;
                let mut members = Map::new();
                reader.object(|reader, name| {
                    self.spend(name.len() + VALUE)?;
                    members.insert(name.to_owned(), self.value(reader)?);
                    Ok::<_, JsonError>(Fate::Keep)
                })?;
                Ok(Value::Object(members))
            }
            Kind::Array => {
                let mut elements = Vec::new();
                reader.array(|reader| {
                    elements.push(self.value(reader)?);
                    Ok::<_, JsonError>(Fate::Keep)
                })?;
                Ok(Value::Array(elements))
            }
            Kind::Text => {
                let text = reader.string()?;
                self.spend(text.len())?;
                Ok(Value::String(text.into_owned()))
            }
            Kind::Number => number(reader.word()?).map(Value::Number),
            Kind::Bool => Ok(Value::Bool(reader.word()? == "true")),
            Kind::Null => reader.word().map(|_| Value::Null),
        }
    }
}

/// A number whose grammar is known to be good.
pub(crate) fn number(word: &str) -> Read<Number> {
    // As an integer it would lose its sign.
    if word.contains(['.', 'e', 'E']) || word == "-0" {
        let float = word.parse().ok().and_then(Number::from_f64);
        return float.ok_or(JsonError::NumberTooLarge);
    }
    let signed = word.parse::<i64>().map(Number::from);
    signed
        .or_else(|_| word.parse::<u64>().map(Number::from))
        .map_err(|_| JsonError::IntegerTooLarge)
}
