-- migrate:up
-- Work that takes longer than a request: asked for by anybody, done by the leader, followed by whoever has its id. A job
-- is written down before it is begun, and one that was cut short is taken up again.

create table gateway.jobs (
    id bigserial primary key,
    kind text not null,
    -- two jobs that would do the same are one: unique while it is not finished
    key text not null,
    state text not null default 'queued' check (state in ('queued', 'running', 'done', 'failed')),
    step text,
    percent int not null default 0 check (percent between 0 and 100),
    code text,
    error text,
    params jsonb not null default '{}',
    result jsonb,
    slice_id int,
    user_id int,
    attempts int not null default 0,
    next_attempt_at timestamptz not null default gateway.clock(),
    created_at timestamptz not null default gateway.clock(),
    started_at timestamptz,
    finished_at timestamptz
);
create unique index jobs_one_of_a_key on gateway.jobs (key) where finished_at is null;
create index jobs_due on gateway.jobs (next_attempt_at) where finished_at is null;
create index jobs_of_user on gateway.jobs (user_id, id desc) where user_id is not null;
create index jobs_of_slice on gateway.jobs (slice_id, id desc) where slice_id is not null;
create trigger tell after insert or update on gateway.jobs for each row execute function gateway.tell();
