-- migrate:up
-- What this gateway adds to the adopted tables, and its own.

-- users ------------------------------------------------------------------------------------------------------
alter table gateway.users
    add column language text not null default 'en',
    -- an admin's suspension; one for money is told by the slice's status and the subscription
    add column suspended_at timestamptz,
    add column deleting_at timestamptz,
    alter column created_at set default gateway.clock();

-- slices -----------------------------------------------------------------------------------------------------
-- `status` is where a slice stands in its life, `wanted` what its process or container should be doing.
alter table gateway.slices
    add column uuid uuid not null default gen_random_uuid() unique,
    add column host text not null default '127.0.0.1',
    add column managed boolean not null default true,
    add column wanted text not null default 'running' check (wanted in ('running', 'stopped', 'absent')),
    add column image text,
    add column wa_state text,
    add column failures int not null default 0,
    add column retry_at timestamptz,
    add column failed_step text,
    add column failed_reason text,
    add column assigned_at timestamptz,
    alter column created_at set default gateway.clock();

-- sessions: the 90 days at most of an adopted session count from its adoption -------------------------------------
alter table gateway.sessions
    add column ref uuid not null default gen_random_uuid() unique,
    add column started_at timestamptz not null default gateway.clock(),
    add column extended_at timestamptz not null default gateway.clock(),
    add column ip text,
    add column user_agent text,
    alter column created_at set default gateway.clock();
create index sessions_user on gateway.sessions (user_id);
create index sessions_expiry on gateway.sessions (expires_at);
-- the clear tokens of the older gateway; a new database has none
update gateway.sessions set id = encode(sha256(convert_to(id, 'UTF8')), 'hex');

-- one live slice a user, in both directions
create unique index slices_one_per_user on gateway.slices (user_id) where user_id is not null;

-- password resets: only the SHA-256 of the token -------------------------------------------------------------------
create table gateway.password_resets (
    token_hash text primary key,
    user_id int not null references gateway.users on delete cascade,
    created_at timestamptz not null default gateway.clock(),
    expires_at timestamptz not null
);
create index password_resets_user on gateway.password_resets (user_id);

-- the step log of every deed on a slice: written down before the step is taken -------------------------------------
create table gateway.slice_steps (
    id bigserial primary key,
    slice_id int not null,
    deed text not null,
    step text not null,
    state text not null check (state in ('started', 'done', 'failed', 'undone')),
    detail jsonb,
    at timestamptz not null default gateway.clock()
);
create index slice_steps_slice on gateway.slice_steps (slice_id, id desc);

-- what must be told to the outside, written in the transaction of its cause ------------------------------------------
create table gateway.outbox (
    id bigserial primary key,
    kind text not null,
    key text not null unique,
    payload jsonb not null,
    attempts int not null default 0,
    next_attempt_at timestamptz not null default gateway.clock(),
    created_at timestamptz not null default gateway.clock(),
    sent_at timestamptz,
    last_error text
);
create index outbox_due on gateway.outbox (next_attempt_at) where sent_at is null;

create table gateway.audit_log (
    id bigserial primary key,
    actor text not null,
    action text not null,
    target text not null,
    detail jsonb,
    ip text,
    created_at timestamptz not null default gateway.clock()
);

-- the leader's number: every write of a leader carries it --------------------------------------------------------------
create table gateway.leader (
    only_row boolean primary key default true check (only_row),
    epoch bigint not null default 0
);
insert into gateway.leader default values;

create index events_newest on gateway.events (created_at desc, id desc);
create index events_open on gateway.events (kind, slice_id) where resolved_at is null;
