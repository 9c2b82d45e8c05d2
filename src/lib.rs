//! lakescrub removes the people who opted out from a data lake, and proves it. This page is the way into the source.
//!
//! ```text
//!  lists ─▶ request ─▶ match_index ─▶ find ─▶ plan ─▶ rewrite ─▶ purge ─▶ verify ─▶ account ─▶ manifest ─▶ chain
//!           canonical                 rows    pure:   one swap   old      a second   what was   signed      one run
//!           identifiers               that    what    an object, versions engine     observed               after the
//!                                     match   and     journaled,          looks                             other
//!                                             why     read back           again
//! ```
//!
//! The wiring alone knows this order: [`run`] has a function for each command, [`requests`], [`gate`] and [`drop`] have those of their
//! own, and [`session`] what all of them begin and end with. The modules below stand in reading order, in layers:
//!
//! ```text
//! wiring       run  session  requests  request_deadlines  request_export  gate  gate_scope  gate_names  drop  drop_consumers
//!              ledger_run  cli  account  canary  show  show_table  progress
//! stages       find  rewrite  purge  verify  manifest_diff    never use each other
//! edges        job  request  ledger  drop_files  drop_answer  store  format  dataset  journal  keys  chain  manifest_check
//! pure facts   match_*  ledger_event  ledger_fold  plan  deadline  standing  manifest  object_table  signature  merkle  tag    no I/O, no clock
//! vocabulary   error  identifier  action  residue  meter
//! ```
//!
//! A module uses its own layer and those below it; `tests/it/architecture.rs` has the list of all and checks it.
//!
//! # Words
//!
//! * **identifier**: what a list says a person is known by, a kind and a canonical form; **tag**: its keyed digest, the only form
//!   in which one leaves memory.
//! * **suppression list**, **list row**, **entry**: who is to go; **match**, **finding**: a row of the data that a list row means.
//! * **request**: that somebody is to go, with an id; **ledger**: the log of all requests, one **event** a fact, in chained
//!   **segments**; **fold**: what the events amount to. A request **re-appears** when it matches after it was done, and is **held** by another's
//!   exemption that has an identifier of it; an identifier that nobody's request asks for any more is **let go**. **gate**: the look at objects before they are published, **probe file**: the tags it is given.
//! * **dataset**: what a `uri` of the job names; **object**: one file or key of it; **in scope**: by its name an object of the dataset.
//! * **plan**, **step**, **dry run**: what would become of each object and why.
//! * **rewrite**: an object's new content replaces the old in one **swap**. It **removes** rows or **redacts** cells; an object without
//!   rows may be **dropped**; an old version is **purged**.
//! * **read back**: the new content is opened again from the store and compared, before it counts.
//! * **residue**: what the verifying scan still finds, in rows, beside them in an object's bytes, or in its name. **Canary**: a planted identifier that must be found, or must not leak.
//! * **verification manifest**: the signed account of a run: a **statement** in an **envelope**, and the table of objects. The
//!   **chain** of manifests ends at the **head**.
//! * **journal**: each swap, announced and confirmed; **lock**: one run on a state; **sweep**: the removal of what dead writers left.
//!
//! # Invariants
//!
//! 1. Nothing is overwritten unless its ETag is the one that was scanned.
//!    Test: `stages::an_object_changed_just_before_the_swap_keeps_its_new_bytes`.
//! 2. The old bytes go only after the new ones were read back and compared.
//!    Test: `stages::what_differs_when_it_is_read_back_never_replaces_the_object`.
//! 3. `verify` shares no code with `find`, `match_index`, `format`, `rewrite` and no line of DataFusion. So the rows are proven by
//!    a second engine; what lies beside them (bytes, names, columns that no rule names) is looked for by `verify_*` alone, before the
//!    plan and after the rewrite, and a word that these miss is missed both times. One exception: both readers of CSV find quotes,
//!    delimiters and line ends by [`byte_mask`], where a fault would hide a row from both; it knows nothing of CSV, and its own tests
//!    compare it with a count byte by byte for every byte at every place.
//!    Tests: `verify::the_verifier_shares_no_code_with_what_it_checks`, `stages::a_row_that_find_skips_is_residue_with_its_object_and_count`.
//! 4. Kept rows, their order, and every cell not under an action are identical before and after.
//!    Tests: `cases::every_case_leaves_the_lake_it_should`,
//!    `rewrite_parquet::kept_rows_and_the_character_of_a_file_survive_every_manner_of_writing`.
//! 5. Raw identifiers exist in memory only; what leaves is a keyed tag.
//!    Test: `privacy::no_output_holds_an_identifier_or_its_unkeyed_hash`.
//! 6. A manifest field is an observation, and "not checked" is a value.
//!    Test: `manifest::counts_that_do_not_add_up_are_not_signed_and_leave_no_manifest`.
//! 7. Same inputs and same `now` give the same plan, byte for byte.
//!    Test: `cli::the_same_inputs_and_the_same_now_give_the_same_plan_byte_for_byte`.
//! 8. Running twice changes nothing the second time.
//!    Test: `cases::every_case_leaves_the_lake_it_should`.
//! 9. What cannot be read is reported, never skipped.
//!    Test: `cli::exit_3_what_could_not_be_looked_at_is_listed_beside_what_was_done`.
//! 10. The verifying scan never prunes by statistics, bloom filter or page index.
//!     Test: `verify::wrong_statistics_hide_no_row`.
//! 11. Erased means gone from the bytes: dictionaries, bounds, page index, bloom filters, temporary files.
//!     Tests: `rewrite_parquet::nothing_of_a_removed_row_is_left_in_any_byte`, for copied pages
//!     `page_copy::no_byte_of_copied_pages_and_of_what_tells_of_them_shows_a_removed_row`, and for what others left there: all of
//!     `verify_catches`.
//!
//! # Where a new thing goes
//!
//! * A file format: one file in `format/`, and its reading a second time in `verify_*`.
//! * A storage: one file in `store/`. A table format: one file in `dataset/`.
//! * An identifier kind: a variant in [`identifier`], its rule once more in [`verify_normalise`], rows in the vectors of both.
//! * An action: a variant in [`action`]; `match` names every case, so the compiler shows where it is asked for.
//! * A command: a variant in [`cli`], a function in [`run`] or in the file of its family ([`requests`], [`gate`], [`drop`]).
//!   An exit code: [`error`], nowhere else.
//! * An output: a reader of a checked manifest, beside [`manifest_diff`].
//! * A fault that was found: a test that failed before it was mended. Most are a folder in `tests/cases/`.

// vocabulary
pub mod error;
pub mod name_letters;
pub mod identifier;
pub mod date_format;
pub mod hashed;
pub mod column_path;
pub mod action;
pub mod residue;
pub mod meter;
pub mod parquet_bounds;
pub mod thrift;
pub mod page_bytes;
pub mod byte_mask;
// where
pub mod toml_reader;
pub mod deadline;
pub mod standing;
pub mod job;
pub mod job_read;
pub mod job_rules;
pub mod job_check;
pub mod store;
pub mod format;
pub mod dataset;
// who
pub mod request;
pub mod request_bytes;
pub mod request_cells;
pub mod request_frames;
pub mod request_lines;
pub mod request_text;
pub mod key_table;
pub mod tag_table;
pub mod unlisted;
pub mod screen;
pub mod match_index;
pub mod match_builder;
pub mod match_composite;
pub mod match_probe;
pub mod drop_files;
pub mod ledger_event;
pub mod ledger_fold;
pub mod ledger;
pub mod drop_answer;
pub mod request_id;
pub mod request_import;
pub mod ledger_probe;
// what
pub mod column_values;
pub mod probe_chunk;
pub mod find_probe;
pub mod find_records;
pub mod find_parquet;
pub mod find;
pub mod plan;
pub mod journal;
pub mod rewrite;
pub mod purge;
// proof
pub mod verify_letters;
pub mod verify_normalise;
pub mod verify_tokens;
pub mod verify_filter;
pub mod verify_bytes;
pub mod verify_batch;
pub mod verify_gates;
pub mod verify_columns;
pub mod verify_parquet;
pub mod verify_records;
pub mod verify_ndjson;
pub mod verify_ledger;
pub mod verify_list;
pub mod verify_entries;
pub mod verify_rules;
pub mod verify_words;
pub mod verify_names;
pub mod verify;
pub mod signature;
pub mod keys;
pub mod merkle;
pub mod tag;
pub mod object_table;
pub mod manifest;
pub mod chain;
pub mod manifest_check;
pub mod manifest_diff;
// wiring
pub mod canary;
pub mod account;
pub mod show_table;
pub mod show;
pub mod progress;
pub mod cli;
pub mod ledger_run;
pub mod requests;
pub mod request_deadlines;
pub mod request_export;
pub mod drop;
pub mod drop_consumers;
pub mod gate_scope;
pub mod gate_names;
pub mod gate;
pub mod session;
pub mod run;
