#!/usr/bin/env python3
"""What Polars and DuckDB need for the same work: find the rows of listed people, or find them and rewrite every object that holds one.

    peers.py ENGINE find|scrub --list FILE --threads N [--out FOLDER] OBJECT...

Both compare lower(trim(email)), keep each object's codec and row group size, keep the order of rows, and fsync what they wrote. The JSON line on
stdout has the seconds after the imports, so that the start of Python and its libraries is not counted against them.
"""

import argparse
import json
import os
import pathlib
import time


def parquet_settings(path):
    import pyarrow.parquet as pq

    group = pq.read_metadata(path).row_group(0)
    return group.column(0).compression.lower(), group.num_rows


class Polars:
    def __init__(self, threads):
        os.environ["POLARS_MAX_THREADS"] = str(threads)
        import polars

        self.pl = polars
        self.key = polars.col("email").str.strip_chars().str.to_lowercase()

    def load(self, path):
        read = self.pl.read_csv(path, has_header=False, new_columns=["key"], separator="\x01", quote_char=None)
        self.listed = read.unique().lazy()

    def scan(self, paths, **options):
        if paths[0].endswith(".csv"):
            return self.pl.scan_csv(paths, infer_schema=False, **options)
        return self.pl.scan_parquet(paths, **options)

    def find(self, paths):
        rows = self.scan(paths, include_file_paths="path").select(self.key.alias("key"), "path")
        hits = rows.join(self.listed, on="key", how="semi").group_by("path").len().collect(engine="streaming")
        return dict(hits.iter_rows())

    def rewrite(self, path, target):
        kept = self.scan([path]).join(self.listed, left_on=self.key, right_on="key", how="anti", maintain_order="left")
        if path.endswith(".csv"):
            return kept.sink_csv(target, engine="streaming")
        codec, group_rows = parquet_settings(path)
        level = 3 if codec == "zstd" else None
        kept.sink_parquet(target, compression=codec, compression_level=level, row_group_size=group_rows, engine="streaming")


class DuckDB:
    KEY = "lower(trim(email))"

    def __init__(self, threads):
        import duckdb

        self.db = duckdb.connect(config={"threads": threads})

    def load(self, path):
        self.db.execute(
            "create table listed as select distinct key from read_csv($path, header = false, columns = {'key': 'varchar'}, delim = '\x01', quote = '')",
            {"path": path},
        )

    def source(self, paths, options=""):
        names = ", ".join("'" + path.replace("'", "''") + "'" for path in paths)
        reader = "read_csv" if paths[0].endswith(".csv") else "read_parquet"
        options += ", all_varchar = true, header = true" if reader == "read_csv" else ""
        return f"{reader}([{names}]{options})"

    def find(self, paths):
        rows = self.source(paths, ", filename = true")
        query = f"select filename, count(*) from {rows} where {self.KEY} in (select key from listed) group by 1"
        return dict(self.db.execute(query).fetchall())

    def rewrite(self, path, target):
        kept = f"select rows.* from {self.source([path])} rows where not exists (select 1 from listed where key = {self.KEY})"
        if path.endswith(".csv"):
            options = "format csv, header true"
        else:
            codec, group_rows = parquet_settings(path)
            level = ", compression_level 3" if codec == "zstd" else ""
            options = f"format parquet, compression {codec}{level}, row_group_size {group_rows}"
        self.db.execute(f"copy ({kept}) to '{target}' ({options})")


def fsync(path):
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("engine", choices=["polars", "duckdb"])
    parser.add_argument("work", choices=["find", "scrub"])
    parser.add_argument("--list", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("objects", nargs="+")
    args = parser.parse_args()

    engine = {"polars": Polars, "duckdb": DuckDB}[args.engine](args.threads)
    start = time.perf_counter()
    engine.load(args.list)
    matched = engine.find(args.objects)
    if args.work == "scrub":
        for path in sorted(matched):
            target = args.out / os.path.basename(path)
            engine.rewrite(path, str(target))
            fsync(target)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "rows_matched": sum(matched.values()), "objects_matched": len(matched)}))


if __name__ == "__main__":
    main()
