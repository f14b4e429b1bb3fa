"""The frame store: every video once, as ArrayRecord shards."""
