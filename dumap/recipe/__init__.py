"""The stages of a run, their order, and which of them are done.

The engine that runs tasks is handed to it.

- The order: `recipes` (and the plan of a run), `stage_names`; `pipeline` runs them, `submitted_run` does so in a task.
- What a run is of: `data` (what a program gives), `identity` (refuses other parameters and data), `digests` (of
  stages), `provenance` (versions and processors), `locations` (checks them).
- Other runs: `lineage` (stages inherited from a parent), `family` (parents and children).
- What is there: `status`, `keep` (drops parts), `damage` (uncommits damaged parts), `work` (runs in a work place).
- Who is told: `observers`.
"""
