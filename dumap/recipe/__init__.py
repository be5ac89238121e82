"""The stages of a run, their order, and which of them are done. An engine, given as an argument, runs their tasks.

- The order of stages: `recipes` (also the plan of a run), `stage_names`.
- Running: `pipeline` (runs the stages), `submitted_run` (runs the pipeline in a task), `observers`.
- Parameters and data: `data` (given by a program), `identity` (refuses other parameters and data), `digests` (of
  stages), `provenance` (versions and processors), `locations` (their checks).
- Other runs: `lineage` (stages inherited from a parent), `family` (parents and children).
- Existing runs: `status`, `keep` (drops parts), `damage` (uncommits damaged parts), `work` (runs in a work place).
"""
