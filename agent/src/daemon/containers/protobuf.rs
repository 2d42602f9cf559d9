//! Protocol Buffers, as far as a runtime's answers need them (protobuf.dev, "Encoding"): the fields of one message, one after
//! another. A message in a message is bytes until somebody asks for its fields, so nothing nests deeper than the caller does.
use thiserror::Error;

/// Bytes of a number at most.
const VARINT: usize = 10;
/// The largest number of a field.
const FIELD: u64 = (1 << 29) - 1;

/// Not the encoding of any message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(super) enum Malformed {
    #[error("a message ends in the middle of a field")]
    Truncated,
    #[error("a number is longer than 64 bits")]
    Overlong,
    #[error("a field has the number {0}")]
    Number(u64),
    #[error("a field has the wire type {0}")]
    Type(u64),
    #[error("a text is not UTF-8")]
    Text,
}

/// The fields of a message in their order; ends behind the first that is malformed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields<'m> {
    rest: &'m [u8],
}

/// A field's number and, where it is a text or a message, its bytes. Numbers are read over.
pub(super) type Field<'m> = (u64, Option<&'m [u8]>);

impl<'m> Fields<'m> {
    pub(super) fn of(message: &'m [u8]) -> Self {
        Self { rest: message }
    }

    fn next_field(&mut self) -> Result<Field<'m>, Malformed> {
        let tag = self.varint()?;
        let (number, kind) = (tag >> 3, tag & 7);
        if number == 0 || number > FIELD {
            return Err(Malformed::Number(number));
        }
        let content = match kind {
            0 => {
                self.varint()?;
                None
            }
            1 => self.bytes(8).map(|_| None)?,
            2 => {
                let length = self.varint()?;
                Some(self.bytes(length)?)
            }
            5 => self.bytes(4).map(|_| None)?,
            // Groups are of a language older than CRI.
            other => return Err(Malformed::Type(other)),
        };
        Ok((number, content))
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0_u64;
        for place in 0..VARINT {
            let (&byte, rest) = self.rest.split_first().ok_or(Malformed::Truncated)?;
            self.rest = rest;
            let bits = u64::from(byte & 0x7f);
            let shift = 7 * u32::try_from(place).map_err(|_| Malformed::Overlong)?;
            if bits.leading_zeros() < shift {
                return Err(Malformed::Overlong);
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed::Overlong)
    }

    fn bytes(&mut self, length: u64) -> Result<&'m [u8], Malformed> {
        let length = usize::try_from(length).map_err(|_| Malformed::Truncated)?;
        let split = self.rest.split_at_checked(length);
        let (content, rest) = split.ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(content)
    }
}

impl<'m> Iterator for Fields<'m> {
    type Item = Result<Field<'m>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.next_field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

pub(super) fn text(bytes: &[u8]) -> Result<String, Malformed> {
    let text = std::str::from_utf8(bytes).map_err(|_| Malformed::Text)?;
    Ok(text.to_owned())
}

/// An entry of a map of texts: what is missing is empty.
pub(super) fn entry(message: &[u8]) -> Result<(String, String), Malformed> {
    let (mut key, mut value) = (String::new(), String::new());
    for field in Fields::of(message) {
        match field? {
            (1, Some(bytes)) => key = text(bytes)?,
            (2, Some(bytes)) => value = text(bytes)?,
            _ => {}
        }
    }
    Ok((key, value))
}

/// One field of a text or a message; `number` is below 16.
pub(super) fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut field = vec![(number << 3) | 2];
    let mut length = content.len();
    while length > 0x7f {
        field.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    field.push(length as u8);
    field.extend_from_slice(content);
    field
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(message: &[u8]) -> Result<Vec<Field<'_>>, Malformed> {
        Fields::of(message).collect()
    }

    #[test]
    fn what_is_no_message_is_told() {
        let (over, eleven) = ([0xff; 9], [0x80; 11]);
        let mut over = [&[0x08][..], &over, &[0x02]].concat();
        for (bytes, wrong) in [
            (&[0x0a][..], Malformed::Truncated),
            (&[0x0a, 2, b'x'], Malformed::Truncated),
            (&[0x80], Malformed::Truncated),
            (&[0x09, 1, 2, 3], Malformed::Truncated),
            (&[0x0d, 1, 2, 3], Malformed::Truncated),
            // A length of all there can be.
            (
                &[
                    0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1,
                ],
                Malformed::Truncated,
            ),
            (&[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f], Malformed::Truncated),
            (&eleven, Malformed::Overlong),
            (&over, Malformed::Overlong),
            (&[0x00, 1], Malformed::Number(0)),
            (
                &[0x82, 0x80, 0x80, 0x80, 0x10, 0],
                Malformed::Number(1 << 29),
            ),
            (&[0x0b], Malformed::Type(3)),
            (&[0x0c], Malformed::Type(4)),
            (&[0x0e], Malformed::Type(6)),
        ] {
            assert_eq!(read(bytes), Err(wrong), "{bytes:x?}");
        }
        // The last byte of the longest number may say one bit.
        *over.last_mut().unwrap() = 1;
        assert_eq!(read(&over), Ok(vec![(1, None)]));
        assert_eq!(text(&[0xff]), Err(Malformed::Text));
        assert_eq!(entry(&[0x0a, 1, 0xff]), Err(Malformed::Text));
    }

    #[test]
    fn unknown_fields_are_read_over() {
        let name = field(1, b"n");
        let more = [
            &[0x10, 0x96, 0x01][..],
            &[0x19, 1, 2, 3, 4, 5, 6, 7, 8],
            &[0x25, 1, 2, 3, 4],
        ];
        let message = [&more.concat()[..], &name, &field(15, b"")].concat();
        let expected = vec![
            (2, None),
            (3, None),
            (4, None),
            (1, Some(&b"n"[..])),
            (15, Some(&[][..])),
        ];
        assert_eq!(read(&message), Ok(expected));
        assert_eq!(entry(&name), Ok(("n".to_owned(), String::new())));
        assert_eq!(entry(&[]), Ok((String::new(), String::new())));
    }

    #[test]
    fn nesting_costs_nothing() {
        let mut message = Vec::new();
        for _ in 0..10_000 {
            message = field(1, &message);
        }
        assert_eq!(read(&message).unwrap().len(), 1);
        assert!(entry(&message).is_ok() || entry(&message) == Err(Malformed::Text));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(contents in proptest::collection::vec((1_u8..16, proptest::collection::vec(any::<u8>(), 0..300)), 0..8)) {
            let message: Vec<u8> = contents.iter().flat_map(|(n, content)| field(*n, content)).collect();
            let expected: Vec<Field<'_>> = contents.iter().map(|(n, c)| (u64::from(*n), Some(&**c))).collect();
            prop_assert_eq!(read(&message), Ok(expected));
        }

        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let fields: Vec<_> = Fields::of(&bytes).collect();
            prop_assert!(fields.len() <= bytes.len());
            let _ = entry(&bytes);
        }
    }
}
