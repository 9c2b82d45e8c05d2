//! Reads TOML tables field by field and gathers every fault with its key and line, so that a job file's author sees them all at once.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

/// One thing wrong in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// 1-based; `None` for a value that came from `--set`.
    pub line: Option<usize>,
    pub key: String,
    pub message: String,
}

/// The faults found so far, shared by all readers of one file.
#[derive(Clone)]
pub struct Faults {
    found: Rc<RefCell<Vec<Fault>>>,
    text: Rc<str>,
}

impl Faults {
    pub fn new(text: &str) -> Self {
        Faults { found: Rc::default(), text: text.into() }
    }

    pub fn add(&self, span: Range<usize>, key: &str, message: impl Into<String>) {
        let line = (span != (0..0)).then(|| self.text[..span.start.min(self.text.len())].matches('\n').count() + 1);
        self.found.borrow_mut().push(Fault { line, key: key.to_owned(), message: message.into() });
    }

    /// All faults, in the order of their lines.
    pub fn take(self) -> Vec<Fault> {
        let mut found = self.found.take();
        found.sort_by_key(|fault| fault.line.unwrap_or(0));
        found
    }
}

/// A table whose fields are taken one by one; what is left at [`Table::finish`] is unknown.
pub struct Table<'i> {
    path: String,
    span: Range<usize>,
    fields: DeTable<'i>,
    known: Vec<&'static str>,
    faults: Faults,
}

/// A taken value and where it stood.
pub struct Field<'i> {
    pub key: String,
    pub span: Range<usize>,
    value: DeValue<'i>,
    faults: Faults,
}

impl<'i> Table<'i> {
    pub fn new(path: &str, table: Spanned<DeTable<'i>>, faults: Faults) -> Self {
        Table { path: path.to_owned(), span: table.span(), fields: table.into_inner(), known: Vec::new(), faults }
    }

    /// Adds a fault about the whole table, or a field of it that is not there.
    pub fn fault(&self, key: &str, message: impl Into<String>) {
        self.faults.add(self.span.clone(), &self.key(key), message);
    }

    fn key(&self, name: &str) -> String {
        match (self.path.is_empty(), name.is_empty()) {
            (true, _) => name.to_owned(),
            (_, true) => self.path.clone(),
            _ => format!("{}.{name}", self.path),
        }
    }

    pub fn take(&mut self, name: &'static str) -> Option<Field<'i>> {
        self.known.push(name);
        let value = self.fields.remove(name)?;
        Some(Field { key: self.key(name), span: value.span(), value: value.into_inner(), faults: self.faults.clone() })
    }

    pub fn required(&mut self, name: &'static str) -> Option<Field<'i>> {
        let field = self.take(name);
        if field.is_none() {
            self.fault(name, "is missing");
        }
        field
    }

    pub fn string(&mut self, name: &'static str) -> Option<String> {
        self.take(name)?.string()
    }

    pub fn boolean(&mut self, name: &'static str) -> Option<bool> {
        let field = self.take(name)?;
        match field.value {
            DeValue::Boolean(value) => Some(value),
            _ => field.wrong("true or false"),
        }
    }

    /// A whole number of at least `least`.
    pub fn integer(&mut self, name: &'static str, least: u64) -> Option<u64> {
        let field = self.take(name)?;
        let wanted = format!("a whole number of at least {least}");
        match &field.value {
            DeValue::Integer(digits) => match u64::from_str_radix(digits.as_str(), digits.radix()) {
                Ok(value) if value >= least => Some(value),
                _ => {
                    field.fault(format!("must be {wanted}, not {digits}"));
                    None
                }
            },
            _ => field.wrong(&wanted),
        }
    }

    /// A number between 0 and 1.
    pub fn fraction(&mut self, name: &'static str) -> Option<f64> {
        let field = self.take(name)?;
        let text = match &field.value {
            DeValue::Float(number) => number.as_str(),
            DeValue::Integer(number) => number.as_str(),
            _ => return field.wrong("a number between 0 and 1"),
        };
        match text.parse() {
            Ok(value) if (0.0..=1.0).contains(&value) => Some(value),
            _ => {
                field.fault(format!("must be a number between 0 and 1, not {text}"));
                None
            }
        }
    }

    /// The table under `name`; a missing one reads as an empty one.
    pub fn table(&mut self, name: &'static str) -> Table<'i> {
        let (path, faults) = (self.key(name), self.faults.clone());
        let empty = || Table {
            path: path.clone(),
            span: 0..0,
            fields: DeTable::new(),
            known: Vec::new(),
            faults: faults.clone(),
        };
        match self.take(name) {
            None => empty(),
            Some(field) => field.table().unwrap_or_else(empty),
        }
    }

    pub fn tables(&mut self, name: &'static str) -> Vec<Table<'i>> {
        match self.take(name) {
            None => Vec::new(),
            Some(field) => field.array().into_iter().filter_map(Field::table).collect(),
        }
    }

    /// Every field, for tables whose keys are names the user chose.
    pub fn take_all(&mut self) -> Vec<(String, Field<'i>)> {
        let fields = std::mem::take(&mut self.fields);
        let with_key = |(name, value): (Spanned<_>, Spanned<DeValue<'i>>)| {
            let name: std::borrow::Cow<'i, str> = name.into_inner();
            let key = self.key(&name);
            (
                name.into_owned(),
                Field { key, span: value.span(), value: value.into_inner(), faults: self.faults.clone() },
            )
        };
        fields.into_iter().map(with_key).collect()
    }

    /// Reports the fields that nobody took.
    pub fn finish(self) {
        for name in self.fields.keys() {
            let close = self.known.iter().find(|known| looks_alike(known, name.get_ref()));
            let hint = close.map(|known| format!("; did you mean \"{known}\"?")).unwrap_or_default();
            self.faults.add(name.span(), &self.key(name.get_ref()), format!("is not a known key{hint}"));
        }
    }
}

impl<'i> Field<'i> {
    pub fn fault(&self, message: impl Into<String>) {
        self.faults.add(self.span.clone(), &self.key, message);
    }

    fn wrong<T>(&self, wanted: &str) -> Option<T> {
        self.fault(format!("must be {wanted}, not {}", self.value.type_str()));
        None
    }

    pub fn is_table(&self) -> bool {
        self.value.is_table()
    }

    pub fn string(self) -> Option<String> {
        match self.value {
            DeValue::String(text) => Some(text.into_owned()),
            _ => self.wrong("a string"),
        }
    }

    pub fn table(self) -> Option<Table<'i>> {
        match self.value {
            DeValue::Table(fields) => {
                Some(Table { path: self.key, span: self.span, fields, known: Vec::new(), faults: self.faults })
            }
            _ => self.wrong("a table"),
        }
    }

    /// The elements, keyed `name[0]`, `name[1]`, ...
    pub fn array(self) -> Vec<Field<'i>> {
        let DeValue::Array(elements) = self.value else {
            self.wrong::<()>("an array");
            return Vec::new();
        };
        let element = |(i, value): (usize, Spanned<DeValue<'i>>)| Field {
            key: format!("{}[{i}]", self.key),
            span: value.span(),
            value: value.into_inner(),
            faults: self.faults.clone(),
        };
        elements.into_iter().enumerate().map(element).collect()
    }

    /// The string, mapped by `parse`; a fault that names what is allowed when it returns `None`: names, or the one description, such as `a date`.
    pub fn one_of<T>(self, allowed: &[&str], parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let (key, span, faults) = (self.key.clone(), self.span.clone(), self.faults.clone());
        let text = self.string()?;
        let parsed = parse(&text);
        if parsed.is_none() {
            let why = match allowed {
                [one] => format!("\"{text}\" is not {one}"),
                names => format!("\"{text}\" is none of {}", names.join(", ")),
            };
            faults.add(span, &key, why);
        }
        parsed
    }
}

/// Sets `path` (dotted, array elements by number) to the TOML value `text`, or to the string `text` when it is no TOML value.
pub fn set(table: &mut DeTable<'static>, path: &str, text: &str) -> Result<(), String> {
    let value = match DeValue::parse(text) {
        Ok(mut value) => {
            value.get_mut().make_owned();
            // The value is owned by now; parsing it again from leaked text only changes its lifetime.
            let text: &'static str = Box::leak(text.to_owned().into_boxed_str());
            DeValue::parse(text).map_err(|error| error.message().to_owned())?.into_inner()
        }
        Err(_) => DeValue::String(text.to_owned().into()),
    };
    let names: Vec<&str> = path.split('.').collect();
    let (last, parents) = names.split_last().ok_or("the key is empty")?;
    let mut here = table;
    let mut names = parents.iter().peekable();
    while let Some(name) = names.next() {
        let entry = here
            .entry(Spanned::new(0..0, (*name).to_owned().into()))
            .or_insert_with(|| Spanned::new(0..0, DeValue::Table(DeTable::new())));
        here = match entry.get_mut() {
            DeValue::Table(inner) => inner,
            DeValue::Array(elements) => {
                let element = names.next().and_then(|index| element(elements, index));
                match element {
                    Some(DeValue::Table(inner)) => inner,
                    _ => return Err(format!("{path}: {name} is an array; name one of its tables by number, from 0")),
                }
            }
            _ => return Err(format!("{path}: {name} is not a table")),
        };
    }
    here.insert(Spanned::new(0..0, (*last).to_owned().into()), Spanned::new(0..0, value));
    Ok(())
}

fn element<'a>(elements: &'a mut DeArray<'static>, index: &str) -> Option<&'a mut DeValue<'static>> {
    let index: usize = index.parse().ok()?;
    elements.get_mut(index).map(Spanned::get_mut)
}

/// One edit or one swap of neighbours apart, or equal but for case, hyphens and underscores.
fn looks_alike(known: &str, given: &str) -> bool {
    let fold = |text: &str| text.to_lowercase().replace(['-', '_'], "");
    let (a, b) = (fold(known), fold(given));
    if a == b {
        return true;
    }
    let prefix = a.chars().zip(b.chars()).take_while(|(x, y)| x == y).count();
    let suffix = a.chars().rev().zip(b.chars().rev()).take_while(|(x, y)| x == y).count();
    let (n, m) = (a.chars().count(), b.chars().count());
    let sorted = |text: &str| {
        let mut letters: Vec<char> = text.chars().collect();
        letters.sort_unstable();
        letters
    };
    let one_edit = n.abs_diff(m) <= 1 && prefix + suffix + 1 >= n.max(m);
    one_edit || (prefix + suffix + 2 >= n && sorted(&a) == sorted(&b))
}

/// `None` of a field that is there but wrong is a failure; a field that is not there is not.
pub fn flatten<T>(field: Option<Option<T>>) -> Option<Option<T>> {
    match field {
        None => Some(None),
        Some(None) => None,
        Some(value) => Some(value),
    }
}
