"""What a person sees of a run: the live screen, tables, and (later) the report."""
