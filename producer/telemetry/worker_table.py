"""The metrics of a worker."""

from __future__ import annotations

from tokenbus.producer.telemetry.metric import MetricTable

WORKER = MetricTable("worker", ("pool", "model"))
_count, _gauge, _times = WORKER.counter, WORKER.gauge, WORKER.histogram

BUILD_INFO = _gauge(
    "tokenbus_build_info",
    "always 1",
    "The release, and what it runs on",
    *("process", "version", "python", "engine"),
)
READY = _gauge("tokenbus_ready", "1 or 0", "1 while the process does its work")
PHASE = _gauge(
    "tokenbus_worker_phase",
    "1 or 0",
    "1 for what the worker is at: starting, ready, down between two engines, or draining",
    "phase",
)
JOBS_HELD = _gauge(
    "tokenbus_jobs_held", "jobs", "Jobs that this worker owns, by phase", "priority", "phase"
)
RUNNING_TOKENS = _gauge(
    "tokenbus_running_tokens",
    "tokens",
    "Tokens in the context of running jobs: prompts and what was generated for them",
    "priority",
)
SEQUENCES = _gauge(
    "tokenbus_sequences",
    "sequences",
    "Sequences in the engine: running in its batch, or waiting for pages",
    "state",
)
JOBS = _count(
    "tokenbus_jobs",
    "jobs",
    "Jobs that left this worker, by outcome: finished, failed, cancelled, expired, requeued",
    *("priority", "tenant", "outcome"),
)
CHOICES = _count(
    "tokenbus_choices", "choices", "Choices of finished jobs, by why they ended", "reason"
)
JOB_TOKENS = _count(
    "tokenbus_job_tokens",
    "tokens",
    "Tokens of ended jobs: of their prompts, those of them found in the cache, and generated",
    *("priority", "tenant", "kind"),
)
TOKENS = _count(
    "tokenbus_tokens",
    "tokens",
    "Tokens, by what became of them: prompt tokens computed and those found in the prefix cache"
    " instead, tokens generated and those of them preempted, tokens logged",
    "kind",
)
PREFIX_HIT_RATIO = _gauge(
    "tokenbus_prefix_hit_ratio", "0 to 1", "Share of prompt tokens found in the prefix cache"
)
PREEMPTED_RATIO = _gauge(
    "tokenbus_preempted_ratio", "0 to 1", "Preempted tokens over generated ones"
)
PREEMPTIONS = _count(
    "tokenbus_preemptions", "times", "Times that the engine took the pages of a running sequence"
)
DRAFT_TOKENS = _count(
    "tokenbus_draft_tokens",
    "tokens",
    "Drafted tokens that steps verified: those that were right were accepted",
    *("drafter", "outcome"),
)
TOKENS_PER_STEP = _gauge(
    "tokenbus_tokens_per_step",
    "tokens",
    "What a decode step brought of a sequence: one token, and the drafted ones that were right",
)
PAGES = _gauge(
    "tokenbus_pages",
    "pages",
    "KV pages: held by one sequence, shared by several, cached for prompts that begin alike, free."
    " The four add up to all",
    "state",
)
JOBS_PULLED = _count("tokenbus_jobs_pulled", "jobs", "Jobs taken from the queue")
RESUMES = _count(
    "tokenbus_resumes", "jobs", "Jobs that went on here behind tokens that another had logged"
)
TAKEOVERS = _count("tokenbus_takeovers", "jobs", "Jobs of dead workers that this one took over")
FENCED_WRITES = _count(
    "tokenbus_fenced_writes",
    "jobs",
    "Jobs whose log refused this worker, because a later owner had taken it over",
)
PARKED = _count("tokenbus_jobs_parked", "jobs", "Jobs handed back to make room for others")
UNDONE = _count(
    "tokenbus_jobs_unpulled", "jobs", "Jobs handed back because they needed more than was counted"
)
PULLS_SPARED = _count(
    "tokenbus_pulls_spared", "pulls", "Pulls that left jobs to a worker with their prefix"
)
INBOX = _count("tokenbus_inbox_entries", "entries", "Raw entries of the inbox", "outcome")
QUEUE_TIME = _times(
    "tokenbus_queue_time",
    "From the submit, by the server's clock, until the engine gave a job its pages; of jobs that"
    " nobody had begun",
    "priority",
)
TTFT = _times(
    "tokenbus_ttft",
    "From the submit, by the server's clock, until the first token was published",
    "priority",
)
ITL = _times("tokenbus_itl", "Between the tokens of ended jobs, at the worker", "priority")
E2E = _times(
    "tokenbus_e2e",
    "From the submit, by the server's clock, until the end was published; of finished jobs",
    "priority",
)
STEP_TIME = _times("tokenbus_step_time", "Of one step of the engine")
PUBLISH_LAG = _times(
    "tokenbus_publish_lag", "From the engine's hand-off to the log's confirmation, per entry"
)
COALESCING = _gauge(
    "tokenbus_coalescing_seconds",
    "seconds",
    "How long tokens are held back so that more share an entry; 0 while all keep up",
)
PUBLISH_WAIT = _count(
    "tokenbus_publish_wait_seconds", "seconds", "From the hand-off to the call, summed over entries"
)
LOG_ENTRIES = _count("tokenbus_log_entries", "entries", "Entries of token logs written")
LOG_CALLS = _count("tokenbus_log_calls", "calls", "Calls on the server that wrote them")
SESSIONS_LOST = _count("tokenbus_sessions_lost", "times", "Times that the server went away")
ENGINE_ENDS = _count(
    "tokenbus_engine_ends", "engines", "Engines that died or did not start, by cause", "cause"
)
ENGINE_RESTARTS = _count(
    "tokenbus_engine_restarts", "engines", "Engines that came up in the place of one that had ended"
)
ENGINE_RANKS = _gauge(
    "tokenbus_engine_ranks",
    "ranks",
    "Ranks that run the model together, 1 without tensor parallelism; 0 while there is no engine",
)
ENGINE_ENDS_IN_A_ROW = _gauge(
    "tokenbus_engine_ends_in_a_row",
    "engines",
    "Engines that died or did not start in a row, with no job to blame; 0 while one is up",
)
SUSPECTS_CLEARED = _count(
    "tokenbus_suspects_cleared",
    "jobs",
    "Jobs that passed the place where an engine had died with them",
)
