//! Whether the Thrift structures of a Parquet file keep within the bytes they stand in: looked at before a decoder reserves memory,
//! or goes into recursion, by what they claim.
//!
//! Pure, and only ever refuses. Decoders take counts at their word: a footer of a kilobyte that names two thousand million columns
//! ends the process, which no error handling survives. Meant for every reader of footers, the verifier's too: it decodes nothing.

/// Structs and lists within one another. The format itself needs fewer than ten.
const NESTING_MAX: usize = 32;

/// Groups of a schema within one another: decoders walk a schema by recursion.
const SCHEMA_DEPTH_MAX: usize = 128;

/// What does not fit; for messages.
pub type OutOfBounds = &'static str;

/// The length of the footer that the last 8 bytes of a file tell, those 8 included.
pub fn footer_bytes(last_eight: &[u8]) -> u64 {
    let length = last_eight.get(..4).and_then(|length| length.try_into().ok()).map_or(0, u32::from_le_bytes);
    u64::from(length) + 8
}

/// Looks over a footer (`FileMetaData`).
pub fn check_footer(footer: &[u8]) -> Result<(), OutOfBounds> {
    let mut walk = Walk { bytes: footer, at: 0 };
    walk.fields(0, &mut |walk, field, kind| {
        if (field, kind) != (SCHEMA, LIST) {
            return walk.skip(kind, 1);
        }
        let (count, _) = walk.list()?;
        let mut open = Vec::new();
        for _ in 0..count {
            let mut children = 0;
            walk.fields(2, &mut |walk, field, kind| match (field, kind) {
                (NUM_CHILDREN, I32) => {
                    children = walk.number()?;
                    Ok(())
                }
                _ => walk.skip(kind, 3),
            })?;
            if !(0..=count as i64).contains(&children) {
                return Err("a group of the schema claims more children than there are elements");
            }
            // This element is one of its group's; then come its own.
            if let Some(left) = open.last_mut() {
                *left -= 1;
            }
            open.push(children);
            while open.last() == Some(&0) {
                open.pop();
            }
            if open.len() > SCHEMA_DEPTH_MAX {
                return Err("the schema is nested too deep");
            }
        }
        Ok(())
    })
}

/// `FileMetaData.schema` and `SchemaElement.num_children`.
const SCHEMA: i16 = 2;
const NUM_CHILDREN: i16 = 5;

// Types of Thrift's compact protocol.
const I32: u8 = 5;
const LIST: u8 = 9;

/// A walk over Thrift's compact protocol.
struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
}

type Each<'f, 'a> = &'f mut dyn FnMut(&mut Walk<'a>, i16, u8) -> Result<(), OutOfBounds>;

impl<'a> Walk<'a> {
    fn byte(&mut self) -> Result<u8, OutOfBounds> {
        let byte = self.bytes.get(self.at).copied().ok_or("it ends too early")?;
        self.at += 1;
        Ok(byte)
    }

    fn varint(&mut self) -> Result<u64, OutOfBounds> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("a number does not end")
    }

    fn number(&mut self) -> Result<i64, OutOfBounds> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn past(&mut self, count: u64) -> Result<(), OutOfBounds> {
        if count > (self.bytes.len() - self.at) as u64 {
            return Err("a length reaches past its end");
        }
        self.at += count as usize;
        Ok(())
    }

    /// The head of a list: how many elements, of which type. Each takes a byte at least.
    fn list(&mut self) -> Result<(u64, u8), OutOfBounds> {
        let head = self.byte()?;
        let count = if head >> 4 == 15 { self.varint()? } else { u64::from(head >> 4) };
        if count > (self.bytes.len() - self.at) as u64 {
            return Err("a list claims more elements than there are bytes");
        }
        Ok((count, head & 0x0f))
    }

    /// Every field of a struct, which `each` reads or skips.
    fn fields(&mut self, nesting: usize, each: Each<'_, 'a>) -> Result<(), OutOfBounds> {
        if nesting > NESTING_MAX {
            return Err("it is nested too deep");
        }
        let mut field = 0i16;
        loop {
            let head = self.byte()?;
            if head & 0x0f == 0 {
                return Ok(());
            }
            field = match head >> 4 {
                0 => self.number()? as i16,
                delta => field.wrapping_add(i16::from(delta)),
            };
            each(self, field, head & 0x0f)?;
        }
    }

    fn skip(&mut self, kind: u8, nesting: usize) -> Result<(), OutOfBounds> {
        match kind {
            // True and false, as fields: the type is the value.
            1 | 2 => Ok(()),
            3 => self.past(1),
            4..=6 => self.varint().map(drop),
            7 => self.past(8),
            8 => {
                let length = self.varint()?;
                self.past(length)
            }
            9 | 10 => {
                let (count, element) = self.list()?;
                if nesting > NESTING_MAX {
                    return Err("it is nested too deep");
                }
                for _ in 0..count {
                    // In a list, a boolean is a byte.
                    if element <= 2 { self.past(1)? } else { self.skip(element, nesting + 1)? }
                }
                Ok(())
            }
            12 => self.fields(nesting, &mut |walk, _, kind| walk.skip(kind, nesting + 1)),
            _ => Err("it holds a type that the format does not use"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A footer with the fields `version` and `schema`, whose elements have these numbers of children.
    fn footer(children: &[u8]) -> Vec<u8> {
        let elements = children.iter().flat_map(|children| [0x35, 0x02, 0x18, 0x01, b'a', 0x15, children * 2, 0x00]);
        let head = [0x15, 0x02, 0x19, 0xfc, children.len() as u8];
        head.into_iter().chain(elements).chain([0x00]).collect()
    }

    #[test]
    fn what_a_footer_claims_must_fit_its_bytes() {
        let deep = |levels: usize| {
            let mut children = vec![1; levels];
            children.push(0);
            footer(&children[..])
        };
        for (footer, wish) in [
            (footer(&[2, 0, 0]), Ok(())),
            (footer(&[1, 2, 0, 0]), Ok(())),
            (deep(100), Ok(())),
            (footer(&[9, 0]), Err("a group of the schema claims more children than there are elements")),
            (deep(126).iter().map(|byte| *byte).collect(), Ok(())),
            (
                vec![0x15, 0x02, 0x19, 0xfc, 0xff, 0xff, 0xff, 0xff, 0x0f],
                Err("a list claims more elements than there are bytes"),
            ),
            (vec![0x18, 0xff, 0xff, 0x03, b'a', 0x00], Err("a length reaches past its end")),
            ([vec![0x1c; 40], vec![0; 41]].concat(), Err("it is nested too deep")),
            ([vec![0x19; 1], vec![0x19; 40]].concat(), Err("it is nested too deep")),
            (vec![0x15, 0x80], Err("it ends too early")),
            (Vec::new(), Err("it ends too early")),
        ] {
            assert_eq!(check_footer(&footer), wish, "{footer:02x?}");
        }
    }
}
