//! A reader of Thrift's compact protocol, for the byte-level check: every field of a structure with its number, known or not.
//!
//! Of our own, because generated readers stop at what they do not know (a newer logical type, a text that is no UTF-8), and a
//! structure that cannot be looked into must not pass. Invariant: what is held is bounded by the bytes read, whatever sizes
//! they claim.

use std::ops::Range;

/// One value; texts are ranges of the input.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Bool(bool),
    /// Of any width.
    Integer(i64),
    Double,
    Bytes(Range<usize>),
    List(Vec<Value>),
    Struct(Vec<(i16, Value)>),
}

impl Value {
    /// The last field of that number, as a reader that overwrites would see it.
    pub fn field(&self, number: i16) -> Option<&Value> {
        match self {
            Value::Struct(fields) => fields.iter().rev().find(|(id, _)| *id == number).map(|(_, value)| value),
            Value::Bool(_) | Value::Integer(_) | Value::Double | Value::Bytes(_) | Value::List(_) => None,
        }
    }

    /// All fields of that number: a repeated one hides nothing.
    pub fn fields(&self, number: i16) -> impl Iterator<Item = &Value> {
        let fields = match self {
            Value::Struct(fields) => fields.as_slice(),
            Value::Bool(_) | Value::Integer(_) | Value::Double | Value::Bytes(_) | Value::List(_) => &[],
        };
        fields.iter().filter(move |(id, _)| *id == number).map(|(_, value)| value)
    }

    pub fn integer(&self, number: i16) -> Option<i64> {
        match self.field(number)? {
            Value::Integer(integer) => Some(*integer),
            Value::Bool(_) | Value::Double | Value::Bytes(_) | Value::List(_) | Value::Struct(_) => None,
        }
    }

    pub fn boolean(&self, number: i16) -> Option<bool> {
        match self.field(number)? {
            Value::Bool(value) => Some(*value),
            Value::Integer(_) | Value::Double | Value::Bytes(_) | Value::List(_) | Value::Struct(_) => None,
        }
    }

    pub fn bytes(&self, number: i16) -> Option<Range<usize>> {
        self.field(number)?.as_bytes()
    }

    pub fn as_bytes(&self) -> Option<Range<usize>> {
        match self {
            Value::Bytes(range) => Some(range.clone()),
            Value::Bool(_) | Value::Integer(_) | Value::Double | Value::List(_) | Value::Struct(_) => None,
        }
    }

    /// The elements of a list field; none when it is not there.
    pub fn list(&self, number: i16) -> &[Value] {
        match self.field(number) {
            Some(Value::List(values)) => values,
            _ => &[],
        }
    }
}

/// Bytes that are no structure of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotThrift;

const DEPTH_MAX: usize = 24;

/// Reads one structure from the start of `bytes`; the second value is where it ends.
pub fn read(bytes: &[u8]) -> Result<(Value, usize), NotThrift> {
    let mut reader = Reader { bytes, at: 0 };
    let value = reader.structure(0)?;
    Ok((value, reader.at))
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn byte(&mut self) -> Result<u8, NotThrift> {
        let byte = *self.bytes.get(self.at).ok_or(NotThrift)?;
        self.at += 1;
        Ok(byte)
    }

    fn varint(&mut self) -> Result<u64, NotThrift> {
        let mut value = 0;
        for shift in (0..70).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f).checked_shl(shift).ok_or(NotThrift)?;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(NotThrift)
    }

    fn zigzag(&mut self) -> Result<i64, NotThrift> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn skip(&mut self, length: u64) -> Result<Range<usize>, NotThrift> {
        let left = (self.bytes.len() - self.at) as u64;
        if length > left {
            return Err(NotThrift);
        }
        let range = self.at..self.at + length as usize;
        self.at = range.end;
        Ok(range)
    }

    fn structure(&mut self, depth: usize) -> Result<Value, NotThrift> {
        if depth > DEPTH_MAX {
            return Err(NotThrift);
        }
        let (mut fields, mut last) = (Vec::new(), 0i16);
        loop {
            let header = self.byte()?;
            if header == 0 {
                return Ok(Value::Struct(fields));
            }
            let delta = i16::from(header >> 4);
            last = match delta {
                0 => i16::try_from(self.zigzag()?).map_err(|_| NotThrift)?,
                delta => last.checked_add(delta).ok_or(NotThrift)?,
            };
            let value = match header & 0x0f {
                1 => Value::Bool(true),
                2 => Value::Bool(false),
                kind => self.value(kind, depth)?,
            };
            fields.push((last, value));
        }
    }

    fn value(&mut self, kind: u8, depth: usize) -> Result<Value, NotThrift> {
        Ok(match kind {
            // In a list a boolean has a byte of its own.
            1 | 2 => Value::Bool(self.byte()? == 1),
            3 => Value::Integer(i64::from(self.byte()? as i8)),
            4..=6 => Value::Integer(self.zigzag()?),
            7 => {
                self.skip(8)?;
                Value::Double
            }
            8 => {
                let length = self.varint()?;
                Value::Bytes(self.skip(length)?)
            }
            9 | 10 => self.elements(depth)?,
            11 => self.map(depth)?,
            12 => self.structure(depth + 1)?,
            _ => return Err(NotThrift),
        })
    }

    fn elements(&mut self, depth: usize) -> Result<Value, NotThrift> {
        if depth > DEPTH_MAX {
            return Err(NotThrift);
        }
        let header = self.byte()?;
        let length = match header >> 4 {
            15 => self.varint()?,
            length => u64::from(length),
        };
        // Every element takes a byte at least, so a claim beyond that is none that can be kept.
        if length > (self.bytes.len() - self.at) as u64 {
            return Err(NotThrift);
        }
        let mut values = Vec::new();
        for _ in 0..length {
            values.push(self.value(header & 0x0f, depth + 1)?);
        }
        Ok(Value::List(values))
    }

    /// Keys and values in turn; Parquet has no maps, but what is there must not stop the reader.
    fn map(&mut self, depth: usize) -> Result<Value, NotThrift> {
        let length = self.varint()?;
        if length > (self.bytes.len() - self.at) as u64 || depth > DEPTH_MAX {
            return Err(NotThrift);
        }
        let mut values = Vec::new();
        let kinds = if length > 0 { self.byte()? } else { 0 };
        for _ in 0..length {
            values.push(self.value(kinds >> 4, depth + 1)?);
            values.push(self.value(kinds & 0x0f, depth + 1)?);
        }
        Ok(Value::List(values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_are_read_with_what_they_do_not_know() {
        // 1: i32 -3, 2: "ab", 3: [1, 2], 20: {1: true}, 20: again
        let bytes = [0x15, 5, 0x18, 2, b'a', b'b', 0x19, 0x25, 2, 4, 0x0c, 40, 0x11, 0, 0x0c, 40, 0, 0];
        let (value, end) = read(&bytes).unwrap();
        assert_eq!(end, bytes.len());
        assert_eq!(value.integer(1), Some(-3));
        assert_eq!(value.bytes(2), Some(4..6));
        assert_eq!(value.list(3), [Value::Integer(1), Value::Integer(2)]);
        assert_eq!(value.fields(20).count(), 2);
        assert_eq!(value.fields(20).next().unwrap().boolean(1), Some(true));
        for cut in 0..bytes.len() {
            assert_eq!(read(&bytes[..cut]), Err(NotThrift), "{cut}");
        }
    }

    #[test]
    fn claims_beyond_the_bytes_are_refused() {
        let long = [0xff, 0xff, 0xff, 0xff, 0x0f];
        let of = |head: &[u8]| read(&[head, &long[..], &[0; 4]].concat());
        assert_eq!(of(&[0x18]), Err(NotThrift), "a text of 4 GiB");
        assert_eq!(of(&[0x19, 0xfc]), Err(NotThrift), "a list of 4 thousand million structures");
        assert_eq!(of(&[0x1b]), Err(NotThrift), "a map");
        assert_eq!(read(&[0x1c; 4096]), Err(NotThrift), "structures without an end");
        assert_eq!(read(&[0x19, 0x19].repeat(4096)), Err(NotThrift), "lists without an end");
    }
}
