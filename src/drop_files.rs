//! The files of California's Delete Request and Opt-out Platform: what a download holds and what an upload must look like.
//!
//! Formats and names follow the DROP technical documentation 1.2.0 (regulation.md 1.2) to the letter. Downloads are read row by row and
//! nothing of them is kept here but the ids that were seen; a row of another shape ends the reading, so that no archive can
//! fill the memory. Errors name file and line, never what stands there.

use std::collections::HashSet;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Seek, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::civil::Date;
use zip::ZipArchive;

use crate::identifier::Kind;

/// What an identifier of a list is made of; the names are DROP's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ListType {
    Ndz,
    Email,
    Phone,
    Maid,
    NameVin,
    Ctvid,
}

impl ListType {
    pub const ALL: [ListType; 6] =
        [ListType::Ndz, ListType::Email, ListType::Phone, ListType::Maid, ListType::NameVin, ListType::Ctvid];

    pub fn name(self) -> &'static str {
        match self {
            ListType::Ndz => "NDZ",
            ListType::Email => "Email",
            ListType::Phone => "Phone",
            ListType::Maid => "MAID",
            ListType::NameVin => "NameVIN",
            ListType::Ctvid => "CTVID",
        }
    }

    pub fn parse(name: &str) -> Option<ListType> {
        ListType::ALL.into_iter().find(|list_type| list_type.name() == name)
    }

    /// The kind whose canonical form DROP hashes.
    pub fn kind(self) -> Kind {
        match self {
            ListType::Ndz => Kind::Ndz,
            ListType::Email => Kind::Email,
            ListType::Phone => Kind::Phone,
            ListType::Maid => Kind::Maid,
            ListType::NameVin => Kind::NameVin,
            ListType::Ctvid => Kind::Ctvid,
        }
    }

    /// The list type whose identifiers are of the kind so named.
    pub fn of_kind(name: &str) -> Option<ListType> {
        ListType::ALL.into_iter().find(|list_type| list_type.kind().name() == name)
    }
}

/// The id of one deletion request, 12 characters of Base62, unique across lists. Tells nothing of the person.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkItemId([u8; 12]);

impl WorkItemId {
    pub fn parse(text: &str) -> Option<WorkItemId> {
        let id: [u8; 12] = text.as_bytes().try_into().ok()?;
        id.iter().all(u8::is_ascii_alphanumeric).then_some(WorkItemId(id))
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("ASCII by parse")
    }
}

impl fmt::Display for WorkItemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One row of a download.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct WorkItem {
    pub id: WorkItemId,
    pub list_type: ListType,
    /// SHA-256 of the canonical form.
    pub sha256: [u8; 32],
    /// The request was cancelled: no removal for it any more, and no status.
    pub is_removed: bool,
}

/// The hash is an unkeyed one and must reach no log.
impl fmt::Debug for WorkItem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WorkItem { id, list_type, is_removed, .. } = self;
        write!(f, "WorkItem({id}, {}, removed: {is_removed})", list_type.name())
    }
}

/// `<YYYYMMDD>_<DataBrokerId>_DROP.zip`
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ArchiveName {
    pub date: Date,
    pub broker_id: String,
}

impl ArchiveName {
    pub fn parse(name: &str) -> Option<ArchiveName> {
        let (date, rest) = name.strip_suffix("_DROP.zip")?.split_once('_')?;
        is_broker_id(rest).then_some(ArchiveName { date: compact_date(date)?, broker_id: rest.to_owned() })
    }
}

/// What a CSV of a download or an upload holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Content {
    List(ListType),
    Removed,
}

impl fmt::Display for ArchiveName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}_DROP.zip", self.date.strftime("%Y%m%d"), self.broker_id)
    }
}

/// `<YYYYMMDD>_<DataBrokerId>_<DataType>[_<OptionalSuffix>].csv`
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct CsvName {
    pub date: Date,
    pub broker_id: String,
    pub content: Content,
    pub suffix: Option<String>,
}

impl CsvName {
    pub fn parse(name: &str) -> Option<CsvName> {
        let parts: Vec<&str> = name.strip_suffix(".csv")?.split('_').collect();
        let (date, broker_id, content, suffix) = match parts.as_slice() {
            [date, broker_id, content] => (date, broker_id, content, None),
            [date, broker_id, content, suffix] if is_suffix(suffix) => (date, broker_id, content, Some(*suffix)),
            _ => return None,
        };
        let content = match *content {
            "Removed" => Content::Removed,
            name => Content::List(ListType::parse(name)?),
        };
        let suffix = suffix.map(str::to_owned);
        let date = compact_date(date)?;
        is_broker_id(broker_id).then(|| CsvName { date, broker_id: (*broker_id).to_owned(), content, suffix })
    }
}

impl fmt::Display for CsvName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let content = match self.content {
            Content::List(list_type) => list_type.name(),
            Content::Removed => "Removed",
        };
        write!(f, "{}_{}_{content}", self.date.strftime("%Y%m%d"), self.broker_id)?;
        if let Some(suffix) = &self.suffix {
            write!(f, "_{suffix}")?;
        }
        f.write_str(".csv")
    }
}

/// Four digits.
pub fn is_broker_id(text: &str) -> bool {
    text.len() == 4 && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// `^[A-Za-z0-9]{1,10}$`
pub fn is_suffix(text: &str) -> bool {
    (1..=10).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

fn compact_date(text: &str) -> Option<Date> {
    let digits = text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = |range| text.get(range).and_then(|digits: &str| digits.parse().ok());
    digits.then(|| Date::new(number(0..4)?, number(4..6)? as i8, number(6..8)? as i8).ok()).flatten()
}

/// What one file of a download held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSummary {
    pub name: String,
    pub content: Content,
    pub rows: u64,
}

/// What is wrong with a download.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadDownload {
    #[error("{archive} is not named <YYYYMMDD>_<DataBrokerId>_DROP.zip")]
    ArchiveName { archive: String },
    #[error("{archive} is a download of broker {found}, [drop] broker_id is {wanted}")]
    Broker { archive: String, found: String, wanted: String },
    #[error("{archive} is not a readable ZIP archive: {reason}")]
    Archive { archive: String, reason: String },
    #[error("{archive}: {file} {reason}")]
    File { archive: String, file: String, reason: String },
    #[error("{archive}: {file}:{line} {reason}")]
    Row { archive: String, file: String, line: u64, reason: &'static str },
}

const ARCHIVE_FILES_MAX: usize = 1000;
/// Ids and hashes are random: no honest list shrinks to a tenth.
const SHRINKS_AT_MOST: u64 = 100;
/// Id, hash, list type, quotes and line end fit well.
const LINE_BYTES_MAX: u64 = 128;

/// Reads a download and gives every row to `each`, in the order of the archive, lists before removals. `archive` is the file's name and
/// must be the documented one, of the broker `broker_id`.
pub fn read_download(
    archive: &str,
    content: impl Read + Seek,
    broker_id: &str,
    each: &mut dyn FnMut(WorkItem),
) -> Result<Vec<FileSummary>, BadDownload> {
    let named = ArchiveName::parse(archive).ok_or_else(|| BadDownload::ArchiveName { archive: shown_name(archive) })?;
    if named.broker_id != broker_id {
        let (found, wanted) = (named.broker_id, broker_id.to_owned());
        return Err(BadDownload::Broker { archive: archive.to_owned(), found, wanted });
    }
    let unreadable = |reason: String| BadDownload::Archive { archive: archive.to_owned(), reason };
    let mut zip = ZipArchive::new(content).map_err(|error| unreadable(zip_reason(&error)))?;
    if zip.len() > ARCHIVE_FILES_MAX {
        return Err(unreadable(format!("it holds more than {ARCHIVE_FILES_MAX} files")));
    }
    // The reader of archives keeps one file of a name; two would hide a list.
    if zip.has_duplicate_names() {
        return Err(unreadable("two of its files have one name".to_owned()));
    }
    let mut files = Vec::new();
    for number in 0..zip.len() {
        let file = zip.by_index(number).map_err(|error| unreadable(zip_reason(&error)))?;
        let name = file.name().map_err(|error| unreadable(zip_reason(&error)))?.into_owned();
        let bad = |reason: String| BadDownload::File { archive: archive.to_owned(), file: shown_name(&name), reason };
        let parsed = CsvName::parse(&name)
            .ok_or_else(|| bad("is not named <YYYYMMDD>_<DataBrokerId>_<DataType>.csv".to_owned()))?;
        if parsed.broker_id != named.broker_id || parsed.date != named.date {
            return Err(bad("is of another download: its date or broker is not the archive's".to_owned()));
        }
        if file.size() > file.compressed_size().saturating_mul(SHRINKS_AT_MOST).saturating_add(1 << 10) {
            return Err(bad(format!("claims to be more than {SHRINKS_AT_MOST} times as large as it is stored")));
        }
        files.push((number, name, parsed.content));
    }
    if files.is_empty() {
        return Err(unreadable("it holds no file".to_owned()));
    }
    // Lists before removals: an id that stands in both is removed.
    files.sort_by_key(|(number, _, content)| (*content == Content::Removed, *number));
    let (mut summaries, mut ids, mut removed) = (Vec::new(), HashSet::new(), HashSet::new());
    for (number, name, content) in files {
        let seen = if content == Content::Removed { &mut removed } else { &mut ids };
        let file = zip.by_index(number).map_err(|error| unreadable(zip_reason(&error)))?;
        let rows = read_csv(file, content, seen, each).map_err(|fault| fault.of(archive, &name))?;
        summaries.push(FileSummary { name, content, rows });
    }
    Ok(summaries)
}

/// Names come from outside: what is shown of one is short and printable.
fn shown_name(name: &str) -> String {
    let shown: String = name.chars().take(80).map(|c| if c.is_ascii_graphic() { c } else { '?' }).collect();
    // A name that was not DROP's may hold anything, an address included.
    if shown.contains('@') { "a file".to_owned() } else { shown }
}

/// Without what the library quotes of the archive.
fn zip_reason(error: &zip::result::ZipError) -> String {
    match error {
        zip::result::ZipError::Io(error) => format!("it cannot be read ({})", error.kind()),
        zip::result::ZipError::InvalidArchive(_) => "its directory is broken".to_owned(),
        zip::result::ZipError::UnsupportedArchive(_) => {
            "it is encrypted or compressed in a way that is not read".to_owned()
        }
        _ => "a file in it cannot be found".to_owned(),
    }
}

enum RowFault {
    At(u64, &'static str),
    Stored(io::ErrorKind),
}

impl RowFault {
    fn of(self, archive: &str, file: &str) -> BadDownload {
        let (archive, file) = (archive.to_owned(), file.to_owned());
        match self {
            RowFault::At(line, reason) => BadDownload::Row { archive, file, line, reason },
            RowFault::Stored(kind) => {
                BadDownload::File { archive, file, reason: format!("cannot be decompressed ({kind})") }
            }
        }
    }
}

fn read_csv(
    content: impl Read,
    kind: Content,
    seen: &mut HashSet<WorkItemId>,
    each: &mut dyn FnMut(WorkItem),
) -> Result<u64, RowFault> {
    let mut content = BufReader::with_capacity(64 << 10, content);
    let (mut bytes, mut line, mut rows, mut has_header) = (Vec::new(), 0, 0, false);
    let header = match kind {
        Content::List(_) => "ID,Hash",
        Content::Removed => "ID,Hash,ListType",
    };
    loop {
        bytes.clear();
        // A line that has no end must not be held whole.
        let read = content.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut bytes);
        if read.map_err(|error| RowFault::Stored(error.kind()))? == 0 {
            return if has_header { Ok(rows) } else { Err(RowFault::At(1, "lacks its header")) };
        }
        line += 1;
        if bytes.len() as u64 == LINE_BYTES_MAX && bytes.last() != Some(&b'\n') {
            return Err(RowFault::At(line, "is longer than any row of a list"));
        }
        let text = std::str::from_utf8(&bytes).map_err(|_| RowFault::At(line, "is not UTF-8"))?;
        let text = text.trim_end_matches(['\n', '\r']);
        if !has_header {
            if text.strip_prefix('\u{feff}').unwrap_or(text) != header {
                let wanted = match kind {
                    Content::List(_) => "is not the header ID,Hash",
                    Content::Removed => "is not the header ID,Hash,ListType",
                };
                return Err(RowFault::At(line, wanted));
            }
            has_header = true;
        } else if !text.is_empty() {
            let item = row(text, kind).map_err(|reason| RowFault::At(line, reason))?;
            if !seen.insert(item.id) {
                return Err(RowFault::At(line, "repeats an ID"));
            }
            rows += 1;
            each(item);
        }
    }
}

fn row(text: &str, kind: Content) -> Result<WorkItem, &'static str> {
    let unquoted = |field: &'_ str| -> String {
        field.strip_prefix('"').and_then(|field| field.strip_suffix('"')).unwrap_or(field).to_owned()
    };
    let fields: Vec<String> = text.split(',').map(unquoted).collect();
    let (id, hash, list_type) = match (kind, fields.as_slice()) {
        (Content::List(list_type), [id, hash]) => (id, hash, list_type),
        (Content::Removed, [id, hash, list_type]) => {
            (id, hash, ListType::parse(list_type).ok_or("has a ListType that is none of DROP's")?)
        }
        (Content::List(_), _) => return Err("has not two fields"),
        (Content::Removed, _) => return Err("has not three fields"),
    };
    let id = WorkItemId::parse(id).ok_or("has an ID that is not 12 letters and digits")?;
    let mut decoded = [0; 36];
    let length = BASE64.decode_slice(hash, &mut decoded).ok().filter(|_| hash.len() == 44);
    if length != Some(32) {
        return Err("has a Hash that is not the Base64 of a SHA-256");
    }
    let sha256 = decoded[..32].try_into().expect("32 bytes");
    Ok(WorkItem { id, list_type, sha256, is_removed: kind == Content::Removed })
}

/// What became of a work item (DROP status codes; 0 and 1 are unused).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Status {
    /// It matched, and all that matched is exempt.
    Exempted,
    /// It matched, and what is not exempt was deleted.
    Deleted,
    /// Several consumers are behind the identifier: all were opted out of sale and sharing.
    OptedOut,
    NotFound,
}

impl Status {
    pub const ALL: [Status; 4] = [Status::Exempted, Status::Deleted, Status::OptedOut, Status::NotFound];

    pub fn code(self) -> u8 {
        match self {
            Status::Exempted => 2,
            Status::Deleted => 3,
            Status::OptedOut => 4,
            Status::NotFound => 5,
        }
    }

    pub fn of_code(code: u8) -> Option<Status> {
        Status::ALL.into_iter().find(|status| status.code() == code)
    }

    pub fn name(self) -> &'static str {
        match self {
            Status::Exempted => "exempted",
            Status::Deleted => "deleted",
            Status::OptedOut => "opted out",
            Status::NotFound => "not found",
        }
    }
}

/// Writes one upload file.
pub fn write_upload(out: &mut dyn Write, rows: &[(WorkItemId, Status)]) -> io::Result<()> {
    out.write_all(b"Id,Status\n")?;
    rows.iter().try_for_each(|(id, status)| writeln!(out, "{id},{}", status.code()))
}

/// The suffix of part `number` (from 0) of `parts`; a single part has none. `prefix` is `part`, or what tells a later upload from an
/// earlier one, whose names DROP rejects the second time.
pub fn part_suffix(prefix: &str, number: usize, parts: usize) -> String {
    let digits = parts.to_string().len().max(2);
    format!("{prefix}{:0digits$}", number + 1)
}

/// Encrypts to an age recipient (`age1...`, age-encryption.org/v1), piece by piece.
pub fn encrypt_archive(recipient: &str, from: &mut dyn Read, to: &mut dyn Write) -> io::Result<()> {
    let recipient: age::x25519::Recipient = recipient.parse().map_err(io::Error::other)?;
    let encryptor = age::Encryptor::with_recipients(std::iter::once(&recipient as _)).map_err(io::Error::other)?;
    let mut sealed = encryptor.wrap_output(to).map_err(io::Error::other)?;
    io::copy(from, &mut sealed)?;
    sealed.finish().map(drop)
}

/// Whether archives can be encrypted to `recipient`.
pub fn is_recipient(recipient: &str) -> bool {
    recipient.parse::<age::x25519::Recipient>().is_ok()
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    use super::*;

    const ARCHIVE: &str = "20260812_4821_DROP.zip";
    /// DROP's worked example of an e-mail address (regulation.md 1.4).
    const HASH: &str = "KA18MT/ph6IHYjzT9zwETySDQyvSh87YuoSBpOQtkhE=";

    fn zipped(files: &[(&str, &str)]) -> Vec<u8> {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        for (name, text) in files {
            zip.start_file(*name, SimpleFileOptions::default()).unwrap();
            zip.write_all(text.as_bytes()).unwrap();
        }
        zip.finish().unwrap().into_inner()
    }

    fn read(archive: &str, bytes: &[u8]) -> Result<(Vec<WorkItem>, Vec<FileSummary>), String> {
        let mut items = Vec::new();
        let files = read_download(archive, Cursor::new(bytes), "4821", &mut |item| items.push(item));
        files.map(|files| (items, files)).map_err(|fault| fault.to_string())
    }

    #[track_caller]
    fn refuses(files: &[(&str, &str)], wanted: &str) {
        let fault = read(ARCHIVE, &zipped(files)).map(drop).unwrap_err();
        assert_eq!(fault, format!("{ARCHIVE}{wanted}"));
    }

    #[test]
    fn a_download_is_read_with_lists_before_removals() {
        let removed = format!("ID,Hash,ListType\r\nAAAAbbbb0001,{HASH},Email\r\n");
        let emails = format!("\u{feff}ID,Hash\nAAAAbbbb0001,{HASH}\n\"AAAAbbbb0002\",\"{HASH}\"");
        let bytes = zipped(&[
            ("20260812_4821_Removed.csv", &removed),
            ("20260812_4821_Email.csv", &emails),
            ("20260812_4821_NDZ_part01.csv", "ID,Hash\n"),
        ]);
        let (items, files) = read(ARCHIVE, &bytes).unwrap();
        let shown: Vec<String> = items.iter().map(|item| format!("{item:?}")).collect();
        assert_eq!(
            shown,
            [
                "WorkItem(AAAAbbbb0001, Email, removed: false)",
                "WorkItem(AAAAbbbb0002, Email, removed: false)",
                "WorkItem(AAAAbbbb0001, Email, removed: true)",
            ]
        );
        assert_eq!(BASE64.encode(items[0].sha256), HASH);
        let rows: Vec<_> = files.iter().map(|file| (file.name.as_str(), file.rows)).collect();
        assert_eq!(
            rows,
            [("20260812_4821_Email.csv", 2), ("20260812_4821_NDZ_part01.csv", 0), ("20260812_4821_Removed.csv", 1)]
        );
    }

    #[test]
    fn a_row_of_another_shape_is_told_by_file_and_line() {
        let email = "20260812_4821_Email.csv";
        for (text, wanted) in [
            (String::new(), ":1 lacks its header"),
            (format!("AAAAbbbb0001,{HASH}\n"), ":1 is not the header ID,Hash"),
            (format!("Id,Hash\nAAAAbbbb0001,{HASH}\n"), ":1 is not the header ID,Hash"),
            (format!("ID,Hash\nAAAAbbbb001,{HASH}\n"), ":2 has an ID that is not 12 letters and digits"),
            (
                format!("ID,Hash\nAAAAbbbb0001,{HASH}\nAAAAbbbb-002,{HASH}\n"),
                ":3 has an ID that is not 12 letters and digits",
            ),
            (format!("ID,Hash\nAAAAbbbb0001,{}\n", &HASH[1..]), ":2 has a Hash that is not the Base64 of a SHA-256"),
            (
                format!("ID,Hash\nAAAAbbbb0001,{}\n", HASH.replace('/', "_")),
                ":2 has a Hash that is not the Base64 of a SHA-256",
            ),
            (
                format!("ID,Hash\nAAAAbbbb0001,{}\n", HASH.trim_end_matches('=')),
                ":2 has a Hash that is not the Base64 of a SHA-256",
            ),
            (format!("ID,Hash\nAAAAbbbb0001,{HASH},5\n"), ":2 has not two fields"),
            (format!("ID,Hash\nAAAAbbbb0001,{HASH}\n\nAAAAbbbb0001,{HASH}\n"), ":4 repeats an ID"),
            (format!("ID,Hash\n{}\n", "x".repeat(200)), ":2 is longer than any row of a list"),
        ] {
            refuses(&[(email, &text)], &format!(": {email}{wanted}"));
        }
        let removed = "20260812_4821_Removed.csv";
        refuses(&[(removed, "ID,Hash\n")], &format!(": {removed}:1 is not the header ID,Hash,ListType"));
        let unknown = format!("ID,Hash,ListType\nAAAAbbbb0001,{HASH},email\n");
        refuses(&[(removed, &unknown)], &format!(": {removed}:2 has a ListType that is none of DROP's"));
        let (ok, twice) = (format!("ID,Hash\nAAAAbbbb0001,{HASH}\n"), "20260812_4821_Phone.csv");
        refuses(&[(email, &ok), (twice, &ok)], &format!(": {twice}:2 repeats an ID"));
    }

    #[test]
    fn a_file_that_is_not_of_this_download_is_refused() {
        let named = |name: &str, wanted: &str| refuses(&[(name, "ID,Hash\n")], wanted);
        let misnamed = "is not named <YYYYMMDD>_<DataBrokerId>_<DataType>.csv";
        for name in [
            "20260812_4821_email.csv",
            "20260812_4821_Emails.csv",
            "folder/20260812_4821_Email.csv",
            "../20260812_4821_Email.csv",
            "20261312_4821_Email.csv",
            "20260812_482_Email.csv",
            "20260812_4821_Email_part-1.csv",
            "20260812_4821_Email_part0000001.csv",
            "20260812_4821_Email.txt",
        ] {
            named(name, &format!(": {name} {misnamed}"));
        }
        named("anna@example.com.csv", &format!(": a file {misnamed}"));
        for name in ["20260813_4821_Email.csv", "20260812_4822_Email.csv"] {
            named(name, &format!(": {name} is of another download: its date or broker is not the archive's"));
        }
        refuses(&[], " is not a readable ZIP archive: it holds no file");
        let bytes = zipped(&[("20260812_4821_Email.csv", "ID,Hash\n")]);
        for (name, wanted) in [
            ("20260812_4821.zip", "20260812_4821.zip is not named <YYYYMMDD>_<DataBrokerId>_DROP.zip"),
            ("20260812_4822_DROP.zip", "20260812_4822_DROP.zip is a download of broker 4822, [drop] broker_id is 4821"),
        ] {
            assert_eq!(read(name, &bytes).unwrap_err(), wanted);
        }
    }

    #[test]
    fn an_archive_that_is_broken_or_a_bomb_is_refused() {
        let email = "20260812_4821_Email.csv";
        let whole = zipped(&[(email, &format!("ID,Hash\nAAAAbbbb0001,{HASH}\n"))]);
        let cut = read(ARCHIVE, &whole[..whole.len() - 30]).unwrap_err();
        assert!(cut.starts_with(&format!("{ARCHIVE} is not a readable ZIP archive")), "{cut}");
        let mut flipped = whole.clone();
        flipped[70] ^= 0xff;
        assert!(read(ARCHIVE, &flipped).is_err(), "a flipped byte of the content");
        let zeros = "0".repeat(3 << 20);
        refuses(&[(email, &zeros)], &format!(": {email} claims to be more than 100 times as large as it is stored"));
        // Rows that are alike are as good as zeros, but repeat an ID long before they fill anything.
        let alike = format!("ID,Hash\n{}", format!("AAAAbbbb0001,{HASH}\n").repeat(20));
        refuses(&[(email, &alike)], &format!(": {email}:3 repeats an ID"));
    }

    #[test]
    fn uploads_have_drops_names_header_and_codes() {
        let id = WorkItemId::parse("AAAAbbbb0001").unwrap();
        let mut out = Vec::new();
        write_upload(&mut out, &[(id, Status::Deleted), (id, Status::NotFound)]).unwrap();
        assert_eq!(out, b"Id,Status\nAAAAbbbb0001,3\nAAAAbbbb0001,5\n");
        let codes: Vec<u8> = Status::ALL.iter().map(|status| status.code()).collect();
        assert_eq!(codes, [2, 3, 4, 5]);
        for (suffix, wanted) in
            [(None, "20260312_4821_MAID.csv"), (Some(part_suffix("part", 0, 2)), "20260312_4821_MAID_part01.csv")]
        {
            let name = CsvName {
                date: jiff::civil::date(2026, 3, 12),
                broker_id: "4821".into(),
                content: Content::List(ListType::Maid),
                suffix,
            };
            assert_eq!(name.to_string(), wanted);
            assert_eq!(CsvName::parse(wanted), Some(name));
        }
        assert_eq!((part_suffix("part", 99, 100), is_suffix("part100")), ("part100".to_owned(), true));
    }

    #[test]
    fn an_archive_opens_with_its_key_alone() {
        let key = age::x25519::Identity::generate();
        let recipient = key.to_public().to_string();
        assert!(is_recipient(&recipient) && !is_recipient("age1qqq") && !is_recipient("ssh-ed25519 AAAA"));
        let plain = vec![7; 200_000];
        let mut sealed = Vec::new();
        encrypt_archive(&recipient, &mut plain.as_slice(), &mut sealed).unwrap();
        assert!(sealed.starts_with(b"age-encryption.org/v1"));
        assert_eq!(age::decrypt(&key, &sealed).unwrap(), plain);
        assert!(age::decrypt(&age::x25519::Identity::generate(), &sealed).is_err());
    }
}
