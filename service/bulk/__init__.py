"""Images by the million: sources are cut into shards, each shard becomes one Parquet file or, if interrupted, none."""
