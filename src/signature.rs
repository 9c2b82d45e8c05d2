//! Signatures and keyed tags: Ed25519 over DSSE, and HMAC-SHA-256 for identifiers.
//!
//! No file, no clock and no randomness lives here; keys come from [`crate::keys`]. Invariant: a secret is wiped when it is
//! dropped and never appears in `Debug`, an error or a serialised form other than its own key file.
//!
//! Sources: DSSE protocol 1.0 (pre-authentication encoding, envelope), RFC 8032 (Ed25519), RFC 8410 (its PKCS#8 and SPKI
//! forms), RFC 2104 (HMAC).

use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey, DecodePublicKey, EncodePublicKey, KeypairBytes};
use ed25519_dalek::{Signature, Signer, VerifyingKey};
use serde::{Deserialize, Serialize};
use sha2::block_api::compress256;
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

/// Why a key or an envelope is not accepted. Holds no part of a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    #[error("is not an Ed25519 private key in PKCS#8 PEM form")]
    NotAPrivateKey,
    #[error("is not an Ed25519 public key in SPKI PEM form")]
    NotAPublicKey,
    #[error("is not a tag key: 32 bytes in base64 or hex are needed")]
    NotATagKey,
    #[error("is not a DSSE envelope in the form that is written here")]
    NotAnEnvelope,
    #[error("has the payload type {found:?} instead of {expected:?}")]
    PayloadType { found: String, expected: String },
    #[error("has {0} signatures instead of one")]
    SignatureCount(usize),
    #[error("is signed with key {keyid}, which is not trusted")]
    UnknownKey { keyid: String },
    #[error("has a signature that does not fit its content and key {keyid}")]
    BadSignature { keyid: String },
}

/// The private half that signs manifests.
pub struct SigningKey(ed25519_dalek::SigningKey);

/// The public half: what a reader of a manifest trusts.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

/// The key of the tags under which identifiers may leave memory.
pub struct TagKey(Zeroizing<[u8; 32]>);

/// A DSSE envelope. `payload` and `sig` are base64 with padding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    pub payload: String,
    #[serde(rename = "payloadType")]
    pub payload_type: String,
    pub signatures: Vec<EnvelopeSignature>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvelopeSignature {
    /// Hex SHA-256 of the public key's SPKI DER form.
    pub keyid: String,
    pub sig: String,
}

/// An envelope's content after its signature was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    pub payload: Vec<u8>,
    pub keyid: String,
}

/// PKCS#8 version 1 (no public half, which some OpenSSL releases refuse) around a 32-byte Ed25519 seed: RFC 8410, section 7.
const PKCS8_BEFORE_SEED: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

impl SigningKey {
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        SigningKey(ed25519_dalek::SigningKey::from_bytes(seed))
    }

    pub fn from_pem(pem: &str) -> Result<Self, SignatureError> {
        let mut pair = KeypairBytes::from_pkcs8_pem(pem.trim()).map_err(|_| SignatureError::NotAPrivateKey)?;
        let key = ed25519_dalek::SigningKey::try_from(&pair).map_err(|_| SignatureError::NotAPrivateKey);
        pair.secret_key.zeroize();
        key.map(SigningKey)
    }

    pub fn to_pem(&self) -> Zeroizing<String> {
        // Room for all of it at once: a buffer that grows leaves its first half unwiped.
        let mut der = Zeroizing::new(Vec::with_capacity(48));
        der.extend_from_slice(&PKCS8_BEFORE_SEED);
        der.extend_from_slice(self.0.as_bytes());
        let mut pem = Zeroizing::new(String::with_capacity(128));
        pem.push_str("-----BEGIN PRIVATE KEY-----\n");
        BASE64_STANDARD.encode_string(&*der, &mut pem);
        pem.push_str("\n-----END PRIVATE KEY-----\n");
        pem
    }

    pub fn public_key(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// The envelope around `payload`, signed over its pre-authentication encoding.
    pub fn seal(&self, payload_type: &str, payload: &[u8]) -> Envelope {
        Envelope {
            payload: BASE64_STANDARD.encode(payload),
            payload_type: payload_type.to_owned(),
            signatures: vec![EnvelopeSignature {
                keyid: self.public_key().keyid(),
                sig: self.sign(payload_type, payload),
            }],
        }
    }

    /// The signature alone, in base64.
    pub fn sign(&self, payload_type: &str, payload: &[u8]) -> String {
        BASE64_STANDARD.encode(self.0.sign(&pre_authentication_encoding(payload_type, payload)).to_bytes())
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(..)")
    }
}

impl PublicKey {
    pub fn from_pem(pem: &str) -> Result<Self, SignatureError> {
        VerifyingKey::from_public_key_pem(pem.trim()).map(PublicKey).map_err(|_| SignatureError::NotAPublicKey)
    }

    pub fn to_pem(&self) -> String {
        self.0.to_public_key_pem(LineEnding::LF).expect("an Ed25519 public key has an SPKI form")
    }

    /// Hex SHA-256 of the SPKI DER form: what `openssl pkey -pubin -outform DER | sha256sum` prints.
    pub fn keyid(&self) -> String {
        let der = self.0.to_public_key_der().expect("an Ed25519 public key has an SPKI form");
        hex::encode(Sha256::digest(der.as_bytes()))
    }

    /// Whether `signature` (base64) is this key's over `payload`. Strict: one signature has one spelling.
    pub fn has_signed(&self, payload_type: &str, payload: &[u8], signature: &str) -> bool {
        let Some(signature) = BASE64_STANDARD.decode(signature).ok().and_then(|raw| Signature::from_slice(&raw).ok())
        else {
            return false;
        };
        self.0.verify_strict(&pre_authentication_encoding(payload_type, payload), &signature).is_ok()
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.keyid())
    }
}

impl TagKey {
    pub fn new(bytes: [u8; 32]) -> Self {
        TagKey(Zeroizing::new(bytes))
    }

    /// From its file form: one line of base64, or of hex.
    pub fn from_text(text: &str) -> Result<Self, SignatureError> {
        let text = text.trim();
        let raw = match text.len() {
            64 => hex::decode(text).ok(),
            _ => BASE64_STANDARD.decode(text).ok(),
        };
        let raw = Zeroizing::new(raw.ok_or(SignatureError::NotATagKey)?);
        let bytes: [u8; 32] = raw.as_slice().try_into().map_err(|_| SignatureError::NotATagKey)?;
        Ok(TagKey::new(bytes))
    }

    pub fn to_text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(45));
        BASE64_STANDARD.encode_string(*self.0, &mut text);
        text.push('\n');
        text
    }

    /// The keyed tag of an identifier, in hex: HMAC-SHA-256 over the kind's name, a zero byte and the SHA-256 of the
    /// canonical form. The zero byte keeps two kinds from meeting; the inner hash lets a hashed list give the same tag.
    pub fn tag(&self, kind_name: &str, canonical_sha256: &[u8; 32]) -> String {
        hex::encode(self.raw_tag(kind_name, canonical_sha256))
    }

    /// [`TagKey::tag`] before it is spelled.
    pub fn raw_tag(&self, kind_name: &str, canonical_sha256: &[u8; 32]) -> [u8; 32] {
        self.tags_of(kind_name).tag(canonical_sha256)
    }

    /// Makes the tags of one kind. The key's two blocks are hashed once, so that each tag is two SHA-256 compressions: as many as
    /// RFC 2104 leaves, and no more is spent on buffers.
    ///
    /// # Panics
    ///
    /// When the kind's name is longer than [`KIND_BYTES_MAX`]: kinds are named by the program, not by its users.
    pub fn tags_of(&self, kind_name: &str) -> KindTags {
        assert!(kind_name.len() <= KIND_BYTES_MAX, "a kind has a short name");
        let keyed = |pad: u8| {
            let mut block = Zeroizing::new([pad; 64]);
            block.iter_mut().zip(self.0.iter()).for_each(|(byte, key)| *byte ^= key);
            let mut state = SHA256_START;
            compress256(&mut state, std::slice::from_ref(&*block));
            state
        };
        let mut block = [0; 64];
        block[..kind_name.len()].copy_from_slice(kind_name.as_bytes());
        let at = kind_name.len() + 1;
        pad(&mut block, at + 32);
        KindTags { inner: keyed(0x36), outer: keyed(0x5c), block, at }
    }
}

/// What leaves room for a zero byte, a digest and SHA-256's own padding in one block.
const KIND_BYTES_MAX: usize = 64 - 9 - 32 - 1;

/// FIPS 180-4, section 5.3.3.
const SHA256_START: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// The tags of one kind under one key.
#[derive(Clone)]
pub struct KindTags {
    /// SHA-256 after the key's block, for the inner hash and for the outer.
    inner: [u32; 8],
    outer: [u32; 8],
    /// The inner hash's second block: kind and zero byte, room for the digest, padding.
    block: [u8; 64],
    at: usize,
}

impl KindTags {
    /// The tag of a canonical form, and with it the form's SHA-256.
    #[inline]
    pub fn tag_of_canonical(&self, canonical: &[u8]) -> ([u8; 32], [u8; 32]) {
        // Most fit one block with SHA-256's own padding: nothing is gathered.
        let digest = if canonical.len() <= 55 {
            let mut block = [0; 64];
            block[..canonical.len()].copy_from_slice(canonical);
            block[canonical.len()] = 0x80;
            block[56..].copy_from_slice(&(8 * canonical.len() as u64).to_be_bytes());
            compressed(SHA256_START, &block)
        } else {
            Sha256::digest(canonical).into()
        };
        (self.tag(&digest), digest)
    }

    #[inline]
    pub fn tag(&self, canonical_sha256: &[u8; 32]) -> [u8; 32] {
        let mut block = self.block;
        block[self.at..self.at + 32].copy_from_slice(canonical_sha256);
        let inner = compressed(self.inner, &block);
        let mut block = [0; 64];
        block[..32].copy_from_slice(&inner);
        pad(&mut block, 32);
        compressed(self.outer, &block)
    }
}

/// A tag that is spelled in hex. `None`: it is none.
pub fn tag_of_hex(text: &str) -> Option<[u8; 32]> {
    /// What a hex digit stands for; more than 15: it is none.
    const DIGITS: [u8; 256] = {
        let (mut digits, mut value) = ([0xff; 256], 0);
        while value < 16 {
            digits[b"0123456789abcdef"[value] as usize] = value as u8;
            digits[b"0123456789ABCDEF"[value] as usize] = value as u8;
            value += 1;
        }
        digits
    };
    let text: &[u8; 64] = text.as_bytes().try_into().ok()?;
    let (mut tag, mut all) = ([0; 32], 0);
    for (byte, pair) in tag.iter_mut().zip(text.chunks_exact(2)) {
        let (high, low) = (DIGITS[usize::from(pair[0])], DIGITS[usize::from(pair[1])]);
        *byte = high << 4 | low;
        all |= high | low;
    }
    (all < 16).then_some(tag)
}

/// Ends a message that has one block behind it and `bytes` in this one.
#[inline]
fn pad(block: &mut [u8; 64], bytes: usize) {
    block[bytes] = 0x80;
    block[56..].copy_from_slice(&(8 * (64 + bytes as u64)).to_be_bytes());
}

/// The state after one more block, as SHA-256 spells it.
#[inline]
fn compressed(mut state: [u32; 8], block: &[u8; 64]) -> [u8; 32] {
    compress256(&mut state, std::slice::from_ref(block));
    let mut spelled = [0; 32];
    for (i, word) in state.iter().enumerate() {
        spelled[4 * i..4 * i + 4].copy_from_slice(&word.to_be_bytes());
    }
    spelled
}

impl fmt::Debug for TagKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TagKey(..)")
    }
}

impl Envelope {
    /// One line of JSON, ended by a line feed: the only form that [`Envelope::from_bytes`] takes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(self).expect("an envelope holds strings only");
        bytes.push(b'\n');
        bytes
    }

    /// Strict: an unsigned byte that could be changed unseen (white space, an extra field) is a fault.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SignatureError> {
        let envelope: Envelope = serde_json::from_slice(bytes).map_err(|_| SignatureError::NotAnEnvelope)?;
        if envelope.to_bytes() == bytes { Ok(envelope) } else { Err(SignatureError::NotAnEnvelope) }
    }

    /// The payload, once the one signature was checked with the trusted key it names.
    pub fn open(&self, payload_type: &str, trusted: &[PublicKey]) -> Result<Opened, SignatureError> {
        if self.payload_type != payload_type {
            let (found, expected) = (self.payload_type.clone(), payload_type.to_owned());
            return Err(SignatureError::PayloadType { found, expected });
        }
        let [signature] = self.signatures.as_slice() else {
            return Err(SignatureError::SignatureCount(self.signatures.len()));
        };
        let keyid = signature.keyid.clone();
        let Some(key) = trusted.iter().find(|key| key.keyid() == keyid) else {
            return Err(SignatureError::UnknownKey { keyid });
        };
        let payload = self.payload_unchecked()?;
        if !key.has_signed(payload_type, &payload, &signature.sig) {
            return Err(SignatureError::BadSignature { keyid });
        }
        Ok(Opened { payload, keyid })
    }

    /// The payload without a look at the signature: for who writes the chain, not for who checks it.
    pub fn payload_unchecked(&self) -> Result<Vec<u8>, SignatureError> {
        BASE64_STANDARD.decode(&self.payload).map_err(|_| SignatureError::NotAnEnvelope)
    }
}

/// DSSE's PAE: what is really signed, so that neither type nor length of the payload can be shifted into the other.
pub fn pre_authentication_encoding(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut out = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    out.extend_from_slice(payload);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed(&[seed; 32])
    }

    #[test]
    fn a_tag_is_read_from_hex_and_nothing_else_is() {
        let tag: [u8; 32] = std::array::from_fn(|i| (i * 37 + 5) as u8);
        let text = hex::encode(tag);
        assert_eq!(tag_of_hex(&text), Some(tag));
        assert_eq!(tag_of_hex(&text.to_uppercase()), Some(tag));
        for wrong in [
            &text[1..],
            &text[2..],
            "",
            &format!("{text}00"),
            &text.replacen('5', "g", 1),
            &text.replacen('5', "\u{1}", 1),
        ] {
            assert_eq!(tag_of_hex(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_tag_of_a_form_is_that_of_its_digest_however_long_it_is() {
        let tags = TagKey::new([7; 32]).tags_of("email");
        for length in [0, 1, 32, 54, 55, 56, 63, 64, 65, 300] {
            let canonical = vec![b'a'; length];
            let digest = Sha256::digest(&canonical).into();
            assert_eq!(tags.tag_of_canonical(&canonical), (tags.tag(&digest), digest), "{length}");
        }
    }

    #[test]
    fn the_encoding_is_the_one_of_the_dsse_protocol() {
        let encoded = pre_authentication_encoding("http://example.com/HelloWorld", b"hello world");
        assert_eq!(encoded, b"DSSEv1 29 http://example.com/HelloWorld 11 hello world");
        assert_eq!(pre_authentication_encoding("", b""), b"DSSEv1 0  0 ");
    }

    /// RFC 8032, section 7.1, test 1, and the PKCS#8 and SPKI examples of RFC 8410, section 10.
    #[test]
    fn keys_and_signatures_are_those_of_the_standards() {
        let seed = hex::decode("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60").unwrap();
        let public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
        assert_eq!(hex::encode(SigningKey::from_seed(&seed.try_into().unwrap()).public_key().0.as_bytes()), public);

        let private = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
            -----END PRIVATE KEY-----\n";
        let public = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n\
            -----END PUBLIC KEY-----\n";
        let key = SigningKey::from_pem(private).unwrap();
        assert_eq!(*key.to_pem(), private);
        assert_eq!(key.public_key().to_pem(), public);
        assert_eq!(key.public_key(), PublicKey::from_pem(public).unwrap());
    }

    #[test]
    fn an_envelope_opens_only_with_the_key_that_sealed_it_and_unchanged() {
        let sealed = key(1).seal("a/type", b"{}");
        let keyid = key(1).public_key().keyid();
        let with = |change: &dyn Fn(&mut Envelope)| {
            let mut changed = sealed.clone();
            change(&mut changed);
            changed
        };
        let unknown = SignatureError::UnknownKey { keyid: keyid.clone() };
        let bad = SignatureError::BadSignature { keyid: keyid.clone() };
        let of_another_type = SignatureError::PayloadType { found: "b/type".into(), expected: "a/type".into() };
        let cases = [
            (sealed.clone(), vec![1, 2], Ok(b"{}".to_vec())),
            (sealed.clone(), vec![2], Err(unknown.clone())),
            (sealed.clone(), vec![], Err(unknown)),
            (with(&|e| e.payload = BASE64_STANDARD.encode("{ }")), vec![1], Err(bad.clone())),
            (with(&|e| e.payload_type = "b/type".into()), vec![1], Err(of_another_type)),
            (with(&|e| e.signatures[0].sig = key(1).sign("b/type", b"{}")), vec![1], Err(bad.clone())),
            (with(&|e| e.signatures[0].sig = key(2).sign("a/type", b"{}")), vec![1], Err(bad.clone())),
            (with(&|e| e.signatures[0].sig.truncate(8)), vec![1], Err(bad)),
            (with(&|e| e.signatures.clear()), vec![1], Err(SignatureError::SignatureCount(0))),
            (with(&|e| e.signatures.push(e.signatures[0].clone())), vec![1], Err(SignatureError::SignatureCount(2))),
        ];
        for (envelope, trusted, wish) in cases {
            let trusted: Vec<PublicKey> = trusted.into_iter().map(|seed| key(seed).public_key()).collect();
            assert_eq!(envelope.open("a/type", &trusted).map(|opened| opened.payload), wish);
        }
    }

    #[test]
    fn an_envelope_has_one_spelling() {
        let bytes = key(1).seal("a/type", b"{}").to_bytes();
        let text = String::from_utf8(bytes.clone()).unwrap();
        assert!(Envelope::from_bytes(&bytes).is_ok());
        let others = [text.trim().to_owned(), text.replace("\":", "\": "), text.replacen('{', "{\"more\":1,", 1)];
        for other in others {
            assert_eq!(Envelope::from_bytes(other.as_bytes()), Err(SignatureError::NotAnEnvelope), "{other}");
        }
    }

    #[test]
    fn a_key_that_is_none_is_refused_without_being_quoted() {
        let texts = ["", "secret-secret", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"];
        for text in texts {
            assert_eq!(SigningKey::from_pem(text).unwrap_err(), SignatureError::NotAPrivateKey);
            assert_eq!(PublicKey::from_pem(text).unwrap_err(), SignatureError::NotAPublicKey);
            assert_eq!(TagKey::from_text(text).unwrap_err(), SignatureError::NotATagKey);
        }
        assert_eq!(TagKey::from_text(&BASE64_STANDARD.encode([0; 31])).unwrap_err(), SignatureError::NotATagKey);
    }

    #[test]
    fn a_tag_depends_on_key_kind_and_value_and_nothing_else() {
        let value: [u8; 32] = Sha256::digest(b"ann@example.org").into();
        let tag = TagKey::new([7; 32]).tag("email", &value);
        assert_eq!(tag.len(), 64);
        assert_eq!(TagKey::from_text(&TagKey::new([7; 32]).to_text()).unwrap().tag("email", &value), tag);
        assert_eq!(TagKey::from_text(&hex::encode([7; 32])).unwrap().tag("email", &value), tag);
        assert_ne!(TagKey::new([8; 32]).tag("email", &value), tag);
        assert_ne!(TagKey::new([7; 32]).tag("text", &value), tag);
        assert_ne!(TagKey::new([7; 32]).tag("email", &Sha256::digest(b"bob@example.org").into()), tag);
    }

    /// Computed apart from this code, with Python's `hmac`.
    #[test]
    fn the_tag_of_a_known_value_is_known() {
        let value: [u8; 32] = Sha256::digest(b"ann@example.org").into();
        assert_eq!(
            TagKey::new([7; 32]).tag("email", &value),
            "c73facb08e5c531d2f19e6d506965ca02ec40352291f80fc8fc145e43ba72850"
        );
    }

    #[test]
    fn a_tag_is_the_hmac_of_the_library() {
        use hmac::{Hmac, KeyInit, Mac};
        for (kind, value) in [("email", "a"), ("phone-e164", "b"), ("", ""), ("a-kind-of-22-characters", "c")] {
            let kind = &kind[..kind.len().min(KIND_BYTES_MAX)];
            let digest: [u8; 32] = Sha256::digest(value).into();
            let mut mac = Hmac::<Sha256>::new_from_slice(&[9; 32]).unwrap();
            mac.update(&[kind.as_bytes(), &[0], &digest].concat());
            assert_eq!(TagKey::new([9; 32]).raw_tag(kind, &digest), mac.finalize().into_bytes()[..], "{kind}");
        }
    }

    #[test]
    fn no_secret_shows_in_debug_output() {
        assert_eq!(format!("{:?}", key(1)), "SigningKey(..)");
        assert_eq!(format!("{:?}", TagKey::new([7; 32])), "TagKey(..)");
    }
}
