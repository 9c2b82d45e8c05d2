//! Finding in Parquet: one DataFusion plan for objects of one shape, with the match index as its filter.
//!
//! The plan is a scan of explicit objects, read through our own store and pinned to the ETag that was listed, with the
//! row number of the file as a virtual column; above it the filter. Statistics, bloom filters and page indexes are never
//! consulted, so a file that lies about its contents hides no row.

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{AsArray, BooleanArray};
use arrow::datatypes::{DataType, Field, FieldRef, Int64Type, Schema, SchemaRef, UInt32Type};
use bytes::Bytes;
use datafusion::common::config::ConfigOptions;
use datafusion::common::{DataFusionError, ScalarValue};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::ParquetFileReaderFactory;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::datasource::table_schema::TableSchema;
use datafusion::execution::TaskContext;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{PhysicalExpr, ScalarFunctionExpr};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::filter::FilterExecBuilder;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt};
use parquet::arrow::RowNumber;
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::arrow::parquet_to_arrow_schema;
use parquet::basic::{Encoding, Type as PhysicalType};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData};
use roaring::RoaringTreemap;

use crate::column_values::{Leaf, NoRoute, OwnedPlaced, Placed, Route, route};
use crate::find_probe::{ProbeExec, ProbedColumn, ProbedObject};
use crate::format::parquet_chunk::expansion;
use crate::format::{FormatError, parquet_column, scrubbed};
use crate::identifier::ColumnPath;
use crate::job::Resources;
use crate::match_index::{Check, Matcher, Rule, Scratch};
use crate::meter::Meter;
use crate::parquet_bounds::{self, Expansion};
use crate::residue::SeenChunks;
use crate::store::{self, Object, Store, StoreError, store_error};

/// Objects of one shape: the same root columns of the same types under the same routes.
pub struct Shape {
    schema: SchemaRef,
    routes: Vec<Route>,
}

/// An object whose footer has been read.
pub struct Opened {
    pub object: Object,
    pub rows: u64,
    footer: Arc<ParquetMetaData>,
    /// The last bytes of the object, which came with the footer.
    tail: Bytes,
    expansion: Expansion,
}

/// What a scan of some objects saw.
pub struct Scanned {
    /// The matching rows of each object, in the order they were given.
    pub matched: Vec<RoaringTreemap>,
    /// By position of the matcher's columns: values that no rule could read.
    pub not_comparable: Vec<u64>,
    /// By object: the chunks that were seen whole.
    pub chunks: Vec<SeenChunks>,
}

/// Why an object cannot be opened for finding.
#[derive(Debug, thiserror::Error)]
pub enum CannotOpen {
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error(transparent)]
    Column(#[from] NoRoute),
}

/// Bytes of the first read from the end: one request for most footers.
const FOOTER_GUESS_BYTES: u64 = 64 << 10;

/// Reads the footer of `object` and finds the matcher's columns in it.
pub async fn open(
    store: &Arc<dyn Store>,
    object: Object,
    columns: &[ColumnPath],
) -> Result<(Opened, Shape), CannotOpen> {
    let (footer, tail) = fetch_footer(store.as_ref(), &object).await?;
    // A decoder that panics on odd bytes has not decoded them.
    let understood = std::panic::catch_unwind(AssertUnwindSafe(|| understand(&footer, columns)));
    let (footer, rows, shape) = understood.map_err(|_| corrupt("the decoder panicked"))??;
    let chunks = footer.row_groups().iter().flat_map(RowGroupMetaData::columns);
    let expansion = chunks.map(|chunk| expansion(chunk.compression())).max().unwrap_or(Expansion::NONE);
    Ok((Opened { object, rows, footer: Arc::new(footer), tail, expansion }, shape))
}

/// The footer, which keeps within its bounds, and what of the object's end came with it.
async fn fetch_footer(store: &dyn Store, object: &Object) -> Result<(Bytes, Bytes), FormatError> {
    let size = object.size_bytes;
    if size < 12 {
        return Err(corrupt("too short for a Parquet file"));
    }
    let mut tail = store::read(store, object, size.saturating_sub(FOOTER_GUESS_BYTES)..size).await?;
    match &tail[tail.len() - 4..] {
        b"PAR1" => {}
        b"PARE" => return Err(FormatError::Unsupported("an encrypted footer".to_owned())),
        _ => return Err(corrupt("it does not end like a Parquet file")),
    }
    let length = parquet_bounds::footer_bytes(&tail[tail.len() - 8..]);
    if length > size {
        return Err(corrupt("the footer is longer than the file"));
    }
    if length > tail.len() as u64 {
        tail = store::read(store, object, size - length..size).await?;
    }
    let footer = tail.slice(tail.len() - length as usize..tail.len() - 8);
    parquet_bounds::check_footer(&footer).map_err(|why| corrupt(&format!("the footer: {why}")))?;
    Ok((footer, tail))
}

fn understand(footer: &[u8], columns: &[ColumnPath]) -> Result<(ParquetMetaData, u64, Shape), CannotOpen> {
    let footer = ParquetMetaDataReader::decode_metadata(footer).map_err(|error| parquet_error(&error))?;
    let file = footer.file_metadata();
    let schema = parquet_to_arrow_schema(file.schema_descr(), file.key_value_metadata())
        .map_err(|error| parquet_error(&error))?;
    let shape = shape(&schema, columns)?;
    check_verifiable(&footer, columns)?;
    let rows = u64::try_from(file.num_rows()).map_err(|_| corrupt("a negative row count"))?;
    let in_groups =
        footer.row_groups().iter().try_fold(0u64, |sum, group| sum.checked_add(group.num_rows().try_into().ok()?));
    if in_groups != Some(rows) {
        return Err(corrupt("the row groups do not add up to the file's row count").into());
    }
    Ok((footer, rows, shape))
}

/// The verifier's decoder has fewer encodings than ours for values of fixed length. Rows that it cannot look for afterwards are better
/// not removed: what was done would never be proven.
fn check_verifiable(footer: &ParquetMetaData, columns: &[ColumnPath]) -> Result<(), FormatError> {
    #[allow(deprecated)]
    const DECODED: [Encoding; 5] =
        [Encoding::PLAIN, Encoding::PLAIN_DICTIONARY, Encoding::RLE_DICTIONARY, Encoding::RLE, Encoding::BIT_PACKED];
    let schema = footer.file_metadata().schema_descr();
    for column in columns {
        let Ok(leaf) = parquet_column::resolve(schema, column) else { continue };
        if schema.column(leaf).physical_type() != PhysicalType::FIXED_LEN_BYTE_ARRAY {
            continue;
        }
        let mut encodings = footer.row_groups().iter().flat_map(|group| group.column(leaf).encodings());
        if let Some(encoding) = encodings.find(|encoding| !DECODED.contains(encoding)) {
            let reason =
                format!("column {column}, because values of fixed length in encoding {encoding} cannot be verified");
            return Err(FormatError::Unsupported(reason));
        }
    }
    Ok(())
}

fn corrupt(reason: &str) -> FormatError {
    FormatError::Corrupt(reason.to_owned())
}

/// Keeps the root columns that the paths need; strings and binaries are read as views, which copies no long value.
fn shape(schema: &Schema, columns: &[ColumnPath]) -> Result<Shape, CannotOpen> {
    let mut routes = columns.iter().map(|path| route(schema, path)).collect::<Result<Vec<_>, _>>()?;
    let mut roots: Vec<usize> = routes.iter().map(|route| route.root).collect();
    roots.sort_unstable();
    roots.dedup();
    for route in &mut routes {
        let name = schema.field(route.root).name();
        if schema.fields().iter().filter(|field| field.name() == name).count() > 1 {
            return Err(FormatError::Unsupported("two columns of one name".to_owned()).into());
        }
        route.root = roots.binary_search(&route.root).expect("every root is among the roots");
    }
    let fields: Vec<FieldRef> = roots.iter().map(|root| viewed(&schema.fields()[*root])).collect();
    let schema = Arc::new(Schema::new(fields));
    // The verifying engine reads none so wide: rows would go that nobody could prove gone.
    let is_too_wide = |route: &Route| matches!(route.leaf_type(&schema), DataType::Decimal256(..));
    if let Some(at) = routes.iter().position(is_too_wide) {
        let reason = format!("match column {}, a decimal of more than 38 digits", columns[at]);
        return Err(FormatError::Unsupported(reason).into());
    }
    Ok(Shape { schema, routes })
}

fn viewed(field: &FieldRef) -> FieldRef {
    let viewed = match field.data_type() {
        DataType::Utf8 | DataType::LargeUtf8 => DataType::Utf8View,
        DataType::Binary | DataType::LargeBinary => DataType::BinaryView,
        other => other.clone(),
    };
    // Nullable throughout: a batch is then valid whatever the file holds. Metadata (field ids) would keep equal shapes apart.
    Arc::new(Field::new(field.name(), viewed, true))
}

impl Shape {
    /// Whether objects of both shapes can be scanned by one plan.
    pub fn same(&self, other: &Shape) -> bool {
        self.schema == other.schema && self.routes == other.routes
    }
}

/// Scans objects of one shape. An error says nothing of which object failed: scan them one by one to learn that.
pub async fn scan(
    store: &Arc<dyn Store>,
    shape: &Shape,
    objects: &[&Opened],
    matcher: &Arc<Matcher>,
    resources: &Resources,
    meter: &Arc<Meter>,
) -> Result<Scanned, FormatError> {
    match probed_columns(shape, objects, matcher) {
        Some((columns, leaves)) => probe(store, objects, matcher, columns, leaves, resources, meter).await,
        None => filter(store, shape, objects, matcher, resources.threads, meter).await,
    }
}

/// The columns by their rules, and the leaves they are in each object, when all rules can be answered by probing text and bytes
/// alone.
fn probed_columns(
    shape: &Shape,
    objects: &[&Opened],
    matcher: &Matcher,
) -> Option<(Vec<ProbedColumn>, Vec<Vec<usize>>)> {
    let mut columns: Vec<ProbedColumn> = Vec::new();
    for (number, rule) in matcher.rules.iter().enumerate() {
        let Rule::Single { column, .. } = rule else { return None };
        match columns.iter_mut().find(|probed| probed.column == *column) {
            Some(probed) => probed.rules.push(number),
            None => {
                let is_text = holds_text(shape.routes[*column].leaf_type(&shape.schema))?;
                columns.push(ProbedColumn { column: *column, rules: vec![number], is_text });
            }
        }
    }
    let leaves = |opened: &&Opened| {
        let schema = opened.footer.file_metadata().schema_descr();
        let leaf = |probed: &ProbedColumn| {
            let leaf = parquet_column::resolve(schema, &matcher.columns[probed.column]).ok()?;
            let physical = schema.column(leaf).physical_type();
            matches!(physical, PhysicalType::BYTE_ARRAY | PhysicalType::FIXED_LEN_BYTE_ARRAY).then_some(leaf)
        };
        columns.iter().map(leaf).collect::<Option<Vec<usize>>>()
    };
    let leaves = objects.iter().map(leaves).collect::<Option<Vec<_>>>()?;
    Some((columns, leaves))
}

/// Whether values of this type are text; `None` when they are neither text nor bytes.
fn holds_text(data_type: &DataType) -> Option<bool> {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Some(true),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => Some(false),
        DataType::Dictionary(_, values) => holds_text(values),
        _ => None,
    }
}

/// Without arrays: each row group's columns are probed where they lie.
async fn probe(
    store: &Arc<dyn Store>,
    objects: &[&Opened],
    matcher: &Arc<Matcher>,
    columns: Vec<ProbedColumn>,
    leaves: Vec<Vec<usize>>,
    resources: &Resources,
    meter: &Arc<Meter>,
) -> Result<Scanned, FormatError> {
    let named: Vec<usize> = columns.iter().map(|probed| probed.column).collect();
    let probed = objects.iter().zip(leaves).map(|(opened, leaves)| ProbedObject {
        object: opened.object.clone(),
        footer: opened.footer.clone(),
        tail: opened.tail.clone(),
        leaves,
    });
    let (store, matcher) = (store.clone(), matcher.clone());
    let memory_bytes = resources.memory_mib << 20;
    let (plan, counts) = ProbeExec::new(
        store,
        probed.collect(),
        columns,
        matcher.clone(),
        resources.threads,
        memory_bytes,
        meter.clone(),
    );
    let matched = run(Arc::new(plan), objects.len()).await?;
    check_rows(objects, counts.rows.load(Ordering::Relaxed))?;
    let mut not_comparable = vec![0; matcher.columns.len()];
    for (column, count) in named.into_iter().zip(&counts.not_comparable) {
        not_comparable[column] = count.load(Ordering::Relaxed);
    }
    let columns: Arc<[ColumnPath]> = matcher.columns.clone().into();
    let chunks = std::mem::take(&mut *counts.chunks.lock().unwrap_or_else(|broken| broken.into_inner()));
    let chunks = chunks.into_iter().map(|chunks| SeenChunks::new(columns.clone(), chunks)).collect();
    Ok(Scanned { matched, not_comparable, chunks })
}

/// With arrays: a scan and a filter, for rules over several columns and for columns of numbers.
async fn filter(
    store: &Arc<dyn Store>,
    shape: &Shape,
    objects: &[&Opened],
    matcher: &Arc<Matcher>,
    threads: usize,
    meter: &Arc<Meter>,
) -> Result<Scanned, FormatError> {
    // The reader's row numbers go by the ordinals that a file tells; two alike would give one row group the rows of another.
    let in_order = |opened: &&Opened| {
        let groups = opened.footer.row_groups().iter().enumerate();
        groups.filter_map(|(i, group)| Some((i, group.ordinal()?))).all(|(i, told)| i64::from(told) == i as i64)
    };
    if !objects.iter().all(in_order) {
        return Err(FormatError::Unsupported("row groups that are not numbered in order".to_owned()));
    }
    let filter = Arc::new(Filter::new(matcher.clone(), shape.routes.clone(), meter.clone()));
    let plan = plan(store, shape, objects, filter.clone(), threads).map_err(|error| datafusion_error(&error))?;
    let matched = run(plan, objects.len()).await?;
    check_rows(objects, filter.rows.load(Ordering::Relaxed))?;
    let not_comparable = filter.not_comparable.iter().map(|count| count.load(Ordering::Relaxed)).collect();
    Ok(Scanned { matched, not_comparable, chunks: vec![SeenChunks::default(); objects.len()] })
}

fn check_rows(objects: &[&Opened], seen: u64) -> Result<(), FormatError> {
    let expected: u64 = objects.iter().map(|opened| opened.rows).sum();
    if seen == expected {
        Ok(())
    } else {
        Err(FormatError::Corrupt("fewer or more rows than the footer says".to_owned()))
    }
}

/// Runs all partitions of a plan side by side; the matching rows of each object.
async fn run(plan: Arc<dyn ExecutionPlan>, objects: usize) -> Result<Vec<RoaringTreemap>, FormatError> {
    let context = Arc::new(TaskContext::default());
    let partitions = (0..plan.properties().output_partitioning().partition_count()).map(|partition| {
        let (plan, context) = (plan.clone(), context.clone());
        tokio::spawn(async move { collect(&plan, partition, context, objects).await })
    });
    let mut matched = vec![RoaringTreemap::new(); objects];
    for outcome in futures::future::join_all(partitions).await {
        let part = outcome.map_err(|_| FormatError::Corrupt("the decoder panicked".to_owned()))?;
        let part = part.map_err(|error| datafusion_error(&error))?;
        matched.iter_mut().zip(part).for_each(|(all, some)| *all |= some);
    }
    Ok(matched)
}

const OBJECT_COLUMN: &str = "__lakescrub_object";
const ROW_COLUMN: &str = "__lakescrub_row";

fn plan(
    store: &Arc<dyn Store>,
    shape: &Shape,
    objects: &[&Opened],
    filter: Arc<Filter>,
    threads: usize,
) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
    let row_number = Field::new(ROW_COLUMN, DataType::Int64, false).with_extension_type(RowNumber);
    let table = TableSchema::builder(shape.schema.clone())
        .with_table_partition_cols(vec![Arc::new(Field::new(OBJECT_COLUMN, DataType::UInt32, false))])
        .with_virtual_columns(vec![Arc::new(row_number)])
        .build();
    let (columns, schema) = (shape.schema.fields().len(), table.table_schema().clone());
    let readers =
        PinnedReaders { opened: objects.iter().map(|opened| PinnedReader::new(store.clone(), opened)).collect() };
    let source = ParquetSource::new(table)
        .with_parquet_file_reader_factory(Arc::new(readers))
        .with_pushdown_filters(false)
        .with_enable_page_index(false)
        .with_bloom_filter_on_read(false);
    let scan = FileScanConfigBuilder::new(ObjectStoreUrl::local_filesystem(), Arc::new(source))
        .with_file_groups(file_groups(objects, threads)?)
        .build();
    let arguments: Vec<Arc<dyn PhysicalExpr>> =
        (0..columns).map(|i| Arc::new(Column::new(schema.field(i).name(), i)) as Arc<dyn PhysicalExpr>).collect();
    let suppressed = ScalarFunctionExpr::new(
        "is_suppressed",
        Arc::new(ScalarUDF::new_from_impl(IsSuppressed {
            filter,
            signature: Signature::variadic_any(Volatility::Stable),
        })),
        arguments,
        Arc::new(Field::new("is_suppressed", DataType::Boolean, false)),
        Arc::new(ConfigOptions::default()),
    );
    let filter = FilterExecBuilder::new(Arc::new(suppressed), DataSourceExec::from_data_source(scan))
        .apply_projection(Some(vec![columns, columns + 1]))?
        .build()?;
    Ok(Arc::new(filter))
}

/// Objects above this size are split among the partitions, so that a single large one keeps every thread at work.
const SPLIT_BYTES: u64 = 32 << 20;

/// Spreads the objects over as many partitions as there are threads, evenly by bytes.
fn file_groups(objects: &[&Opened], threads: usize) -> Result<Vec<FileGroup>, DataFusionError> {
    let mut pieces = Vec::new();
    for (number, opened) in objects.iter().enumerate() {
        let size = opened.object.size_bytes;
        let parts = (size / SPLIT_BYTES).clamp(1, threads as u64);
        for part in 0..parts {
            let (start, end) = (size * part / parts, size * (part + 1) / parts);
            // Object stores of other crates refuse keys such as `a//b`: the plan only ever sees our number for the object.
            let file = PartitionedFile::new(number.to_string(), size)
                .with_partition_values(vec![ScalarValue::UInt32(Some(number as u32))]);
            let file = if parts > 1 { file.with_range(start as i64, end as i64) } else { file };
            pieces.push((end - start, file));
        }
    }
    pieces.sort_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
    let mut groups: Vec<(u64, Vec<PartitionedFile>)> = vec![(0, Vec::new()); threads.min(pieces.len()).max(1)];
    for (bytes, file) in pieces {
        let lightest = groups.iter_mut().min_by_key(|(total, _)| *total).expect("at least one group");
        lightest.0 += bytes;
        lightest.1.push(file);
    }
    Ok(groups.into_iter().map(|(_, files)| FileGroup::new(files)).collect())
}

async fn collect(
    plan: &Arc<dyn ExecutionPlan>,
    partition: usize,
    context: Arc<TaskContext>,
    objects: usize,
) -> Result<Vec<RoaringTreemap>, DataFusionError> {
    let mut matched = vec![RoaringTreemap::new(); objects];
    let mut batches = plan.execute(partition, context)?;
    while let Some(batch) = batches.try_next().await? {
        let numbers = batch.column(0).as_primitive::<UInt32Type>();
        let rows = batch.column(1).as_primitive::<Int64Type>();
        for (number, row) in numbers.values().iter().zip(rows.values()) {
            matched[*number as usize].insert(*row as u64);
        }
    }
    Ok(matched)
}

/// The rules as a filter over batches, with counts of what it saw.
struct Filter {
    matcher: Arc<Matcher>,
    routes: Vec<Route>,
    rows: AtomicU64,
    not_comparable: Vec<AtomicU64>,
    meter: Arc<Meter>,
}

impl Filter {
    fn new(matcher: Arc<Matcher>, routes: Vec<Route>, meter: Arc<Meter>) -> Self {
        let not_comparable = routes.iter().map(|_| AtomicU64::new(0)).collect();
        Filter { matcher, routes, rows: AtomicU64::new(0), not_comparable, meter }
    }

    /// Which rows match: one pass a rule.
    fn matches(&self, roots: &[arrow::array::ArrayRef], rows: usize) -> BooleanArray {
        let mut matched = vec![false; rows];
        let mut scratch = Scratch::default();
        for rule in &self.matcher.rules {
            match rule {
                Rule::Single { column, probe } => {
                    let leaf = Leaf::reach(&roots[self.routes[*column].root], &self.routes[*column]);
                    let mut unread = 0;
                    leaf.ask(
                        |value| probe.check(value, &mut scratch),
                        |row, check| match check {
                            Check::Match => matched[row] = true,
                            Check::NoMatch => {}
                            Check::NotComparable => unread += 1,
                        },
                    );
                    self.not_comparable[*column].fetch_add(unread, Ordering::Relaxed);
                }
                Rule::All { columns, composite } => {
                    let parts: Vec<_> = columns
                        .iter()
                        .map(|column| {
                            Leaf::reach(&roots[self.routes[*column].root], &self.routes[*column]).by_row(rows)
                        })
                        .collect();
                    for (row, matched) in matched.iter_mut().enumerate() {
                        let of_row = parts.iter().map(|part| &part[row]);
                        let values: Vec<Vec<Placed<'_>>> =
                            of_row.map(|values| values.iter().map(OwnedPlaced::as_placed).collect()).collect();
                        for (part, values) in values.iter().enumerate() {
                            let unread = values
                                .iter()
                                .filter(|placed| composite.is_not_comparable(part, placed.value, &mut scratch))
                                .count();
                            self.not_comparable[columns[part]].fetch_add(unread as u64, Ordering::Relaxed);
                        }
                        *matched |= composite.check(&values, &mut scratch);
                    }
                }
            }
        }
        self.rows.fetch_add(rows as u64, Ordering::Relaxed);
        self.meter.add(0, rows as u64, 0);
        BooleanArray::from(matched)
    }
}

/// The filter as a DataFusion function of the root columns.
struct IsSuppressed {
    filter: Arc<Filter>,
    signature: Signature,
}

impl std::fmt::Debug for IsSuppressed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("is_suppressed")
    }
}

// One filter is one function: two are equal when they share their counts.
impl PartialEq for IsSuppressed {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.filter, &other.filter)
    }
}

impl Eq for IsSuppressed {}

impl std::hash::Hash for IsSuppressed {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (Arc::as_ptr(&self.filter) as usize).hash(state);
    }
}

impl ScalarUDFImpl for IsSuppressed {
    fn name(&self) -> &str {
        "is_suppressed"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType, DataFusionError> {
        Ok(DataType::Boolean)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue, DataFusionError> {
        let roots = ColumnarValue::values_to_arrays(&args.args)?;
        Ok(ColumnarValue::Array(Arc::new(self.filter.matches(&roots, args.number_rows))))
    }
}

/// Gives the scan its objects by number, with the footer that is read already.
struct PinnedReaders {
    opened: Vec<PinnedReader>,
}

impl std::fmt::Debug for PinnedReaders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} pinned objects", self.opened.len())
    }
}

impl ParquetFileReaderFactory for PinnedReaders {
    fn create_reader(
        &self,
        _: usize,
        file: PartitionedFile,
        _: Option<usize>,
        _: &ExecutionPlanMetricsSet,
    ) -> Result<Box<dyn AsyncFileReader + Send>, DataFusionError> {
        let number: Option<usize> = file.path().as_ref().parse().ok();
        let reader = number
            .and_then(|number| self.opened.get(number))
            .ok_or_else(|| DataFusionError::Internal("a scan asked for an object it was not given".to_owned()))?;
        Ok(Box::new(reader.clone()))
    }
}

/// Reads of one object at the ETag that was listed. A scan asks for whole column chunks, whose pages are looked over here.
#[derive(Clone)]
struct PinnedReader {
    store: Arc<dyn Store>,
    object: Object,
    footer: Arc<ParquetMetaData>,
    expansion: Expansion,
}

/// Ranges closer than this are fetched as one: a request costs more than these bytes.
const COALESCE_BYTES: u64 = 512 << 10;

impl PinnedReader {
    fn new(store: Arc<dyn Store>, opened: &Opened) -> Self {
        let Opened { object, footer, expansion, .. } = opened;
        PinnedReader { store, object: object.clone(), footer: footer.clone(), expansion: *expansion }
    }
}

impl AsyncFileReader for PinnedReader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, parquet::errors::Result<Bytes>> {
        async move { store::read(self.store.as_ref(), &self.object, range).await.map_err(external) }.boxed()
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, parquet::errors::Result<Vec<Bytes>>> {
        async move {
            let spans = coalesce(&ranges);
            let fetched: Vec<Bytes> = futures::stream::iter(spans.iter().cloned())
                .map(|span| store::read(self.store.as_ref(), &self.object, span))
                .buffered(4)
                .try_collect()
                .await
                .map_err(external)?;
            let cut = |range: &Range<u64>| {
                let at = spans.partition_point(|span| span.start <= range.start) - 1;
                let start = (range.start - spans[at].start) as usize;
                let chunk = fetched[at].slice(start..start + (range.end - range.start) as usize);
                parquet_bounds::check_pages(&chunk, self.expansion)
                    .map(|_| chunk)
                    .map_err(|why| ParquetError::General(why.to_owned()))
            };
            ranges.iter().map(cut).collect()
        }
        .boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        _: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, parquet::errors::Result<Arc<ParquetMetaData>>> {
        let footer = self.footer.clone();
        async move { Ok(footer) }.boxed()
    }
}

fn external(error: StoreError) -> ParquetError {
    ParquetError::External(Box::new(error))
}

/// The ranges merged where they touch or nearly touch, in order.
fn coalesce(ranges: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut sorted = ranges.to_vec();
    sorted.sort_by_key(|range| range.start);
    let mut out: Vec<Range<u64>> = Vec::new();
    for range in sorted {
        match out.last_mut() {
            Some(last) if range.start <= last.end.saturating_add(COALESCE_BYTES) => last.end = last.end.max(range.end),
            _ => out.push(range),
        }
    }
    out
}

fn parquet_error(error: &ParquetError) -> FormatError {
    match store_error(error) {
        Some(found) => FormatError::Store(found.clone()),
        None => match error {
            ParquetError::NYI(reason) => FormatError::Unsupported(scrubbed(reason)),
            other => FormatError::Corrupt(scrubbed(&other.to_string())),
        },
    }
}

fn datafusion_error(error: &DataFusionError) -> FormatError {
    match store_error(error) {
        Some(found) => FormatError::Store(found.clone()),
        None => FormatError::Corrupt(scrubbed(&error.to_string())),
    }
}

/// Sums of values that could not be compared, by column name.
pub fn by_column(columns: &[ColumnPath], counts: &[u64]) -> BTreeMap<String, u64> {
    let named = columns.iter().zip(counts).filter(|(_, count)| **count > 0);
    named.map(|(column, count)| (column.to_string(), *count)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_ranges_are_fetched_as_one() {
        let near = COALESCE_BYTES;
        assert_eq!(coalesce(&[10..20, 0..10, 20 + near..30 + near]), vec![0..30 + near]);
        assert_eq!(coalesce(&[0..10, 11 + near..20 + near]), vec![0..10, 11 + near..20 + near]);
    }
}
