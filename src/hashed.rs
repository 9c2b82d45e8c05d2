//! Hashed forms of identifiers: the functions, and how columns spell their digests.
//!
//! Invariant: what is not exactly as long as a digest is none, and is told as not comparable.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use md5::Md5;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::identifier::{Canonical, Value};

/// A hash function of a canonical form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HashFunction {
    Sha256,
    Md5,
    Sha1,
}

/// How a column spells a hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hashed {
    Sha256Hex,
    Sha256Base64,
    Md5Hex,
    Sha1Hex,
}

impl HashFunction {
    pub const ALL: [HashFunction; 3] = [HashFunction::Sha256, HashFunction::Md5, HashFunction::Sha1];

    pub fn name(self) -> &'static str {
        match self {
            HashFunction::Sha256 => "sha256",
            HashFunction::Md5 => "md5",
            HashFunction::Sha1 => "sha1",
        }
    }

    /// The raw digest of `canonical`, written to `out` (cleared first).
    pub fn digest(self, canonical: &[u8], out: &mut Vec<u8>) {
        out.clear();
        match self {
            HashFunction::Sha256 => out.extend_from_slice(&Sha256::digest(canonical)),
            HashFunction::Md5 => out.extend_from_slice(&Md5::digest(canonical)),
            HashFunction::Sha1 => out.extend_from_slice(&Sha1::digest(canonical)),
        }
    }

    fn digest_bytes(self) -> usize {
        match self {
            HashFunction::Sha256 => 32,
            HashFunction::Md5 => 16,
            HashFunction::Sha1 => 20,
        }
    }
}

impl Hashed {
    pub const NAMES: [&'static str; 4] = ["sha256-hex", "sha256-base64", "md5-hex", "sha1-hex"];

    pub fn parse(name: &str) -> Option<Hashed> {
        Some(match name {
            "sha256-hex" => Hashed::Sha256Hex,
            "sha256-base64" => Hashed::Sha256Base64,
            "md5-hex" => Hashed::Md5Hex,
            "sha1-hex" => Hashed::Sha1Hex,
            _ => return None,
        })
    }

    pub fn name(self) -> &'static str {
        match self {
            Hashed::Sha256Hex => "sha256-hex",
            Hashed::Sha256Base64 => "sha256-base64",
            Hashed::Md5Hex => "md5-hex",
            Hashed::Sha1Hex => "sha1-hex",
        }
    }

    pub fn function(self) -> HashFunction {
        match self {
            Hashed::Sha256Hex | Hashed::Sha256Base64 => HashFunction::Sha256,
            Hashed::Md5Hex => HashFunction::Md5,
            Hashed::Sha1Hex => HashFunction::Sha1,
        }
    }

    /// The raw digest that a value spells, written to `out` (cleared first). Hex of either case; surrounding white space is dropped; raw digest
    /// bytes of the right length are taken as they are.
    pub fn read(self, value: Value<'_>, out: &mut Vec<u8>) -> Canonical {
        out.clear();
        let length = self.function().digest_bytes();
        let text = match value {
            Value::Text(text) => text,
            Value::Bytes(bytes) if bytes.len() == length => {
                out.extend_from_slice(bytes);
                return Canonical::Text;
            }
            Value::Bytes(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => text,
                Err(_) => return Canonical::NotComparable,
            },
            Value::Integer(_)
            | Value::Decimal { .. }
            | Value::Float(_)
            | Value::Float32(_)
            | Value::Date(_)
            | Value::Other => return Canonical::NotComparable,
        };
        let text = text.trim();
        if text.is_empty() {
            return Canonical::Empty;
        }
        out.resize(length, 0);
        let readable = match self {
            Hashed::Sha256Hex | Hashed::Md5Hex | Hashed::Sha1Hex => hex::decode_to_slice(text, out).is_ok(),
            Hashed::Sha256Base64 => {
                // Room for one group more than a digest: whatever is longer is none.
                let mut decoded = [0; 36];
                let read = BASE64.decode_slice(text, &mut decoded).is_ok_and(|n| n == length);
                out.copy_from_slice(&decoded[..length]);
                read
            }
        };
        if readable { Canonical::Text } else { Canonical::NotComparable }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_longer_or_shorter_than_a_digest_is_none() {
        let digest = BASE64.encode([7; 32]);
        let mut out = Vec::new();
        for (text, wanted) in [
            (digest.clone(), Canonical::Text),
            ("0".repeat(64), Canonical::NotComparable),
            ("A".repeat(44), Canonical::NotComparable),
            ("A".repeat(4000), Canonical::NotComparable),
            (digest[..40].to_owned(), Canonical::NotComparable),
        ] {
            assert_eq!(Hashed::Sha256Base64.read(Value::Text(&text), &mut out), wanted, "{text}");
        }
    }
}
