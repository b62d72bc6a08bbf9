"""The metrics of a control process: its own, and those of its pool.

Those of the pool are told by one process at a time, the one with the pool's lease, so that sums
over all processes are right.
"""

from __future__ import annotations

from tokenbus.producer.telemetry.metric import MetricTable

CONTROL = MetricTable("control", ("pool",))
BUILD_INFO = CONTROL.gauge(
    "tokenbus_build_info",
    "always 1",
    "The release, and what it runs on",
    *("process", "version", "python"),
)
READY = CONTROL.gauge("tokenbus_ready", "1 or 0", "1 while the process does its work")
SERVER_UP = CONTROL.gauge(
    "tokenbus_server_up", "1 or 0", "1 while the server answers this process, looked at every 2 s"
)
IS_WATCHER = CONTROL.gauge(
    "tokenbus_pool_watcher", "1 or 0", "1 at the process that tells the metrics of the pool"
)
WEBHOOK_TRIES = CONTROL.counter(
    "tokenbus_webhook_tries",
    "tries",
    "Tries of webhooks, by what followed: gone, refused and expired ones are dead",
    "outcome",
)
WEBHOOK_TIME = CONTROL.histogram("tokenbus_webhook_time", "Of one try of a webhook")
CRON_TICKS = CONTROL.counter(
    "tokenbus_cron_ticks", "ticks", "Ticks of crons that this process ran", "cron"
)
ADAPTER_JOBS = CONTROL.counter(
    "tokenbus_adapter_jobs", "jobs", "Jobs of arq that left the adapter", "outcome"
)
ADAPTER_RUNNING = CONTROL.gauge(
    "tokenbus_adapter_jobs_running", "jobs", "Jobs of arq that the adapter waits for"
)

POOL = MetricTable("control, one at a time", ("pool", "model"))
WAITING_JOBS = POOL.gauge(
    "tokenbus_pool_waiting_jobs",
    "jobs",
    "Jobs that no worker holds, delayed ones among them",
    "priority",
)
WAITING_TOKENS = POOL.gauge(
    "tokenbus_pool_waiting_tokens",
    "tokens",
    "Their tokens: prompt plus the most that may be generated",
    "priority",
)
HELD_JOBS = POOL.gauge("tokenbus_pool_held_jobs", "jobs", "Jobs that workers hold", "priority")
OLDEST_AGE = POOL.gauge(
    "tokenbus_pool_oldest_age_seconds",
    "seconds",
    "How long the job waits that has waited longest, 0 where none does",
    "priority",
)
BACKLOG_SECONDS = POOL.gauge(
    "tokenbus_pool_backlog_seconds",
    "seconds",
    "Until the last job that waits now will be begun, by the seats of the workers that are ready or"
    " start, or by the rate at which they took jobs from a backlog last; by the settings"
    " assumed_tokens_per_s and assumed_start_s before any. A delayed job counts from the minute of"
    " its time on",
)
BACKLOG_WORKER_SECONDS = POOL.gauge(
    "tokenbus_pool_backlog_worker_seconds",
    "seconds",
    "How long one ready worker alone is at the waiting jobs: divided by the seconds in which they"
    " shall be begun, it is the number of workers to have",
)
DRAIN_RATE = POOL.gauge(
    "tokenbus_pool_drain_tokens_per_second",
    "tokens a second",
    "That rate, in waiting tokens; there is none before the first backlog",
)
GENERATED_RATE = POOL.gauge(
    "tokenbus_pool_generated_tokens_per_second",
    "tokens a second",
    "Tokens that all workers together generate now",
)
PROMPT_RATE = POOL.gauge(
    "tokenbus_pool_prompt_tokens_per_second",
    "tokens a second",
    "Prompt tokens that all workers together take in now, cached ones too",
)
WORKERS = POOL.gauge("tokenbus_pool_workers", "workers", "Living workers, by phase", "phase")
WORKERS_LOST = POOL.counter(
    "tokenbus_pool_workers_lost",
    "workers",
    "Workers whose lease ran out without a word of theirs, as this process saw it",
)
SUSPECTS = POOL.gauge(
    "tokenbus_pool_suspects",
    "jobs",
    "Waiting jobs that may have killed an engine, and ride with few others",
)
WORKER_VERSIONS = POOL.gauge(
    "tokenbus_pool_worker_versions", "workers", "Living workers, by release", "version"
)
POOL_PAGES = POOL.gauge(
    "tokenbus_pool_pages", "pages", "KV pages of all workers; the states add up to all", "state"
)
PAUSED = POOL.gauge("tokenbus_pool_paused", "1 or 0", "1 while pulls take nothing")
TENANT_WAITING_JOBS = POOL.gauge(
    "tokenbus_pool_tenant_waiting_jobs",
    "jobs",
    "Jobs in the lanes of tenants; what was handed back or is delayed is in none",
    *("priority", "tenant"),
)
TENANT_HELD_JOBS = POOL.gauge(
    "tokenbus_pool_tenant_held_jobs",
    "jobs",
    "Jobs that workers hold, by tenant",
    *("priority", "tenant"),
)
TENANT_WAITING_TOKENS = POOL.gauge(
    "tokenbus_pool_tenant_waiting_tokens",
    "tokens",
    "Waiting tokens of tenants, at all priorities",
    "tenant",
)
DEAD_LETTERS = POOL.gauge(
    "tokenbus_pool_dead_letters", "letters", "Refused entries and failed jobs, kept for people"
)
KEPT_BYTES = POOL.gauge(
    "tokenbus_pool_kept_bytes", "bytes", "What finished jobs have on the server"
)
SERVER_MEMORY = POOL.gauge(
    "tokenbus_server_memory_bytes",
    "bytes",
    "Memory of the server: in use, and its bound, 0 where it has none",
    "kind",
)
