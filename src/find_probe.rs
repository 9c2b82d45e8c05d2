//! The leaf of the find plan that never makes arrays: row groups are fetched, and the text and byte columns that the rules name are
//! probed where they lie (`probe_chunk`). It gives the number of the object and the row of each match.
//!
//! As in `find_parquet`, reads are pinned to the ETag that was listed, and statistics, bloom filters and page indexes are never
//! consulted.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use arrow::array::{Int64Array, RecordBatch, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use bytes::Bytes;
use datafusion::common::DataFusionError;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::StreamExt;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};
use parquet::file::reader::{ChunkReader, Length};

use crate::match_index::{Matcher, Rule, Scratch};
use crate::meter::Meter;
use crate::page_bytes::page_bounds;
use crate::probe_chunk::{Answer, Beside, Soon, Verdict, probe_chunk};
use crate::residue::{Bound, SeenChunk};
use crate::store::{self, Object, ObjectReader, Store, StoreError};

type Result<T, E = DataFusionError> = std::result::Result<T, E>;

/// A column that can be probed: which of the matcher's it is, the rules that look at it, and whether it holds text or bytes.
#[derive(Debug, Clone)]
pub struct ProbedColumn {
    pub column: usize,
    pub rules: Vec<usize>,
    pub is_text: bool,
}

/// An object to be probed: its leaves in the order of the probed columns.
pub struct ProbedObject {
    pub object: Object,
    pub footer: Arc<ParquetMetaData>,
    /// Its last bytes: what stands there is not read again.
    pub tail: Bytes,
    pub leaves: Vec<usize>,
}

/// What the probes counted, for whoever runs the plan.
#[derive(Default)]
pub struct Counts {
    pub rows: AtomicU64,
    /// By probed column.
    pub not_comparable: Vec<AtomicU64>,
    /// By object, by row group and column of the matcher: what was seen of the chunks that were held whole.
    pub chunks: Mutex<Vec<BTreeMap<(usize, usize), SeenChunk>>>,
}

/// The plan's leaf: as many partitions as threads, which share the row groups among them.
pub struct ProbeExec {
    work: Arc<Work>,
    properties: Arc<PlanProperties>,
}

struct Work {
    store: Arc<dyn Store>,
    objects: Vec<ProbedObject>,
    columns: Vec<ProbedColumn>,
    matcher: Arc<Matcher>,
    tasks: Vec<Task>,
    next: AtomicUsize,
    /// What one partition may have fetched and not probed yet.
    ahead_bytes: u64,
    counts: Arc<Counts>,
    meter: Arc<Meter>,
    runtime: tokio::runtime::Handle,
}

/// One row group of one object.
#[derive(Debug, Clone, Copy)]
struct Task {
    object: usize,
    group: usize,
    first_row: u64,
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("object", DataType::UInt32, false),
        Field::new("row", DataType::Int64, false),
    ]))
}

impl ProbeExec {
    /// `memory_bytes` is for all `threads` partitions together.
    pub fn new(
        store: Arc<dyn Store>,
        objects: Vec<ProbedObject>,
        columns: Vec<ProbedColumn>,
        matcher: Arc<Matcher>,
        threads: usize,
        memory_bytes: u64,
        meter: Arc<Meter>,
    ) -> (ProbeExec, Arc<Counts>) {
        let mut tasks = Vec::new();
        for (object, probed) in objects.iter().enumerate() {
            let mut first_row = 0;
            for (group, metadata) in probed.footer.row_groups().iter().enumerate() {
                tasks.push(Task { object, group, first_row });
                first_row += metadata.num_rows().max(0) as u64;
            }
        }
        let not_comparable = columns.iter().map(|_| AtomicU64::new(0)).collect();
        let chunks = Mutex::new(vec![BTreeMap::new(); objects.len()]);
        let counts = Arc::new(Counts { rows: AtomicU64::new(0), not_comparable, chunks });
        let work = Work {
            store,
            objects,
            columns,
            matcher,
            tasks,
            next: AtomicUsize::new(0),
            ahead_bytes: memory_bytes / threads.max(1) as u64 / 2,
            counts: counts.clone(),
            meter,
            runtime: tokio::runtime::Handle::current(),
        };
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema()),
            Partitioning::UnknownPartitioning(threads.max(1)),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        (ProbeExec { work: Arc::new(work), properties: Arc::new(properties) }, counts)
    }
}

impl std::fmt::Debug for ProbeExec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ProbeExec of {} row groups", self.work.tasks.len())
    }
}

impl DisplayAs for ProbeExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

impl ExecutionPlan for ProbeExec {
    fn name(&self) -> &str {
        "ProbeExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, _: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let partition = Partition { work: self.work.clone(), ahead: VecDeque::new(), ahead_bytes: 0 };
        let batches = futures::stream::try_unfold(partition, |mut partition| async move {
            Ok(partition.next_batch().await?.map(|batch| (batch, partition)))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema(), batches.boxed())))
    }
}

/// One partition under way: row groups that are being fetched while another is probed.
struct Partition {
    work: Arc<Work>,
    ahead: VecDeque<(Task, Fetching)>,
    ahead_bytes: u64,
}

type Fetching = tokio::task::JoinHandle<Result<Vec<Chunk>, StoreError>>;

/// So many row groups of one partition are fetched ahead at most.
const GROUPS_AHEAD: usize = 8;

impl Partition {
    async fn next_batch(&mut self) -> Result<Option<RecordBatch>> {
        self.fetch_ahead();
        let Some((task, fetching)) = self.ahead.pop_front() else { return Ok(None) };
        let chunks = fetching.await.map_err(|_| DataFusionError::Execution("a read panicked".to_owned()))?;
        let chunks = chunks.map_err(|error| DataFusionError::External(Box::new(error)))?;
        self.ahead_bytes -= self.work.task_bytes(task);
        self.fetch_ahead();
        let work = self.work.clone();
        let is_held = chunks.iter().all(|chunk| matches!(chunk, Chunk::Held { .. }));
        let probed = if is_held {
            work.probe(task, chunks)
        } else {
            // Reads as it goes, which must not block a thread of the runtime.
            let probing = tokio::task::spawn_blocking(move || work.probe(task, chunks));
            probing.await.map_err(|_| DataFusionError::Execution("a probe panicked".to_owned()))?
        };
        Ok(Some(probed?))
    }

    fn fetch_ahead(&mut self) {
        while self.ahead.len() < GROUPS_AHEAD && (self.ahead.is_empty() || self.ahead_bytes < self.work.ahead_bytes) {
            let Some(task) = self.work.tasks.get(self.work.next.fetch_add(1, Ordering::Relaxed)) else { return };
            self.ahead_bytes += self.work.task_bytes(*task);
            let (work, task) = (self.work.clone(), *task);
            self.ahead.push_back((task, tokio::spawn(async move { work.fetch(task).await })));
        }
    }
}

/// The bytes of one column chunk.
enum Chunk {
    /// Fetched whole, with the column index if there is one.
    Held { pages: Bytes, column_index: Option<Bytes> },
    /// Too large for that: read piece by piece.
    Streamed(ObjectReader),
}

impl Work {
    fn columns(&self, task: Task) -> impl Iterator<Item = &ColumnChunkMetaData> {
        let object = &self.objects[task.object];
        let group = object.footer.row_group(task.group);
        object.leaves.iter().map(|leaf| group.column(*leaf))
    }

    fn task_bytes(&self, task: Task) -> u64 {
        let index_bytes = |column: &ColumnChunkMetaData| column.column_index_length().unwrap_or(0).max(0) as u64;
        let bytes = |column| index_bytes(column).saturating_add(column.compressed_size().max(0) as u64);
        self.columns(task).map(bytes).fold(0, u64::saturating_add)
    }

    async fn fetch(&self, task: Task) -> Result<Vec<Chunk>, StoreError> {
        let probed = &self.objects[task.object];
        let object = &probed.object;
        let is_small = self.task_bytes(task) <= self.ahead_bytes.max(8 << 20);
        let tail_start = object.size_bytes.saturating_sub(probed.tail.len() as u64);
        let read = async |range: Range<u64>| match range.start.checked_sub(tail_start) {
            Some(start) => Ok(probed.tail.slice(start as usize..(range.end - tail_start) as usize)),
            None => store::read(self.store.as_ref(), object, range).await,
        };
        let fetching = self.columns(task).map(async |column| {
            match range(column, object.size_bytes) {
                Some(pages) if is_small => {
                    let index = column_index(column, object.size_bytes);
                    let index = async {
                        match index {
                            Some(range) => read(range).await.map(Some),
                            None => Ok(None),
                        }
                    };
                    let (pages, column_index) = futures::future::try_join(read(pages), index).await?;
                    Ok(Chunk::Held { pages, column_index })
                }
                // A range outside the object is told by whoever reads it.
                Some(_) | None => {
                    let runtime = self.runtime.clone();
                    Ok(Chunk::Streamed(ObjectReader::on(runtime, self.store.clone(), object.clone())))
                }
            }
        });
        futures::future::try_join_all(fetching).await
    }

    fn probe(&self, task: Task, chunks: Vec<Chunk>) -> Result<RecordBatch> {
        let object = &self.objects[task.object];
        let rows = object.footer.row_group(task.group).num_rows().max(0) as u64;
        let mut matched: Vec<u64> = Vec::new();
        for (position, (column, chunk)) in self.columns(task).zip(chunks).enumerate() {
            let answer = self.probe_column(position, column, chunk, rows, object.object.size_bytes);
            let (answer, seen) = answer.map_err(|error| DataFusionError::ParquetError(Box::new(error)))?;
            self.counts.not_comparable[position].fetch_add(answer.not_comparable, Ordering::Relaxed);
            matched.extend(answer.matched);
            if let Some(chunk) = seen {
                let mut chunks = self.counts.chunks.lock().unwrap_or_else(|broken| broken.into_inner());
                chunks[task.object].insert((task.group, self.columns[position].column), chunk);
            }
        }
        matched.sort_unstable();
        matched.dedup();
        self.counts.rows.fetch_add(rows, Ordering::Relaxed);
        self.meter.add(0, rows, 0);
        let objects = UInt32Array::from(vec![task.object as u32; matched.len()]);
        let rows = Int64Array::from_iter_values(matched.into_iter().map(|row| (task.first_row + row) as i64));
        Ok(RecordBatch::try_new(schema(), vec![Arc::new(objects), Arc::new(rows)])?)
    }

    fn probe_column(
        &self,
        position: usize,
        column: &ColumnChunkMetaData,
        chunk: Chunk,
        rows: u64,
        object_bytes: u64,
    ) -> parquet::errors::Result<(Answer, Option<SeenChunk>)> {
        let probed = &self.columns[position];
        let probes: Vec<_> = probed
            .rules
            .iter()
            .filter_map(|rule| match &self.matcher.rules[*rule] {
                Rule::Single { probe, .. } => Some(probe),
                Rule::All { .. } => None,
            })
            .collect();
        let mut scratch = Scratch::default();
        let is_text = probed.is_text;
        // What one probe looks up with is nothing to another.
        let is_only = probes.len() == 1;
        let ask = |bytes: &[u8], told: Option<u128>| {
            let (mut verdict, key) = (Verdict::default(), told.filter(|_| is_only));
            probes.iter().for_each(|probe| verdict.add(probe.check_bytes(bytes, is_text, key, &mut scratch)));
            verdict
        };
        let fetch = |bytes: &[u8]| probes.iter().map(|probe| probe.fetch(bytes)).fold(0, |_, key| key);
        let soon: Soon<'_> = if probes.iter().any(|probe| probe.looks_far()) { Some(&fetch) } else { None };
        match chunk {
            Chunk::Held { pages: bytes, column_index } => {
                let start = range(column, object_bytes).map_or(0, |range| range.start);
                let in_pages = page_bounds(&bytes, column_index.as_deref());
                let in_footer = footer_bounds(column);
                let by_page = in_pages.iter().flatten().map(|bounds| bytes_of(bounds)).collect();
                let mut answer =
                    probe_chunk(Slice { start, bytes }, column, rows, in_footer.clone(), by_page, soon, ask)?;
                let beside = answer.beside.take();
                Ok((answer, in_pages.zip(beside).map(|(in_pages, beside)| seen_chunk(in_footer, in_pages, beside))))
            }
            Chunk::Streamed(reader) => {
                Ok((probe_chunk(reader, column, rows, Vec::new(), Vec::new(), soon, ask)?, None))
            }
        }
    }
}

fn bytes_of(bounds: &[Bound]) -> Vec<Vec<u8>> {
    bounds.iter().map(|bound| bound.bytes.clone()).collect()
}

fn seen_chunk(in_footer: Vec<Vec<u8>>, in_pages: Vec<Vec<Bound>>, beside: Beside) -> SeenChunk {
    let is_value = |bound: &Vec<u8>| beside.unseen_bounds.binary_search(bound).is_err();
    let bounds = in_pages.into_iter().flatten().filter(|bound| !is_value(&bound.bytes)).collect();
    let whole = in_footer.into_iter().filter(is_value).collect();
    SeenChunk { unused_entries: beside.unused_entries, bounds, whole }
}

/// The bounds that the footer tells of a chunk.
fn footer_bounds(column: &ColumnChunkMetaData) -> Vec<Vec<u8>> {
    let bounds = column.statistics().map(|known| [known.min_bytes_opt(), known.max_bytes_opt()]);
    bounds.into_iter().flatten().flatten().map(<[u8]>::to_vec).collect()
}

/// Where the chunk stands; `None` when it claims to stand outside the object.
fn range(column: &ColumnChunkMetaData, object_bytes: u64) -> Option<Range<u64>> {
    let start = column.dictionary_page_offset().unwrap_or_else(|| column.data_page_offset());
    let start = u64::try_from(start).ok()?;
    let end = start.checked_add(u64::try_from(column.compressed_size()).ok()?)?;
    (end <= object_bytes).then_some(start..end)
}

/// Where the chunk's column index stands, if it has one within the object.
fn column_index(column: &ColumnChunkMetaData, object_bytes: u64) -> Option<Range<u64>> {
    let start = u64::try_from(column.column_index_offset()?).ok()?;
    let end = start.checked_add(u64::try_from(column.column_index_length()?).ok()?)?;
    (end <= object_bytes).then_some(start..end)
}

/// A part of an object under the object's own offsets.
struct Slice {
    start: u64,
    bytes: Bytes,
}

impl Length for Slice {
    fn len(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

impl ChunkReader for Slice {
    type T = bytes::buf::Reader<Bytes>;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        use bytes::Buf;
        let from = start.checked_sub(self.start).filter(|from| *from <= self.bytes.len() as u64);
        let from = from.ok_or_else(|| ParquetError::EOF("a page outside its chunk".to_owned()))?;
        Ok(self.bytes.slice(from as usize..).reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        let from = start.checked_sub(self.start).map(|from| from as usize);
        let span = from.and_then(|from| Some(from..from.checked_add(length)?));
        let span = span.filter(|span| span.end <= self.bytes.len());
        span.map(|span| self.bytes.slice(span)).ok_or_else(|| ParquetError::EOF("a page outside its chunk".to_owned()))
    }
}
