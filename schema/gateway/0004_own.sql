-- migrate:up
-- What this gateway adds to the adopted tables, and its own.

-- foreign keys that wait for the commit would forbid changing a table after its rows
set constraints all immediate;

-- users ------------------------------------------------------------------------------------------------------
alter table gateway.users
    add column if not exists language text not null default 'en',
    -- an admin's suspension; one for money is told by the slice's status and the subscription
    add column if not exists suspended_at timestamptz,
    add column if not exists deleting_at timestamptz,
    alter column created_at set default gateway.clock();

-- slices -----------------------------------------------------------------------------------------------------
-- `status` is where a slice stands in its life, `wanted` what its process or container should be doing.
alter table gateway.slices
    add column if not exists uuid uuid not null default gen_random_uuid() unique,
    add column if not exists host text not null default '127.0.0.1',
    add column if not exists managed boolean not null default true,
    add column if not exists wanted text not null default 'running' check (wanted in ('running', 'stopped', 'absent')),
    add column if not exists image text,
    add column if not exists wa_state text,
    add column if not exists failures int not null default 0,
    add column if not exists retry_at timestamptz,
    add column if not exists failed_step text,
    add column if not exists failed_reason text,
    add column if not exists assigned_at timestamptz,
    alter column created_at set default gateway.clock(),
    add constraint slices_status_known
        check (status in ('provisioning', 'available', 'assigned', 'suspended', 'destroying', 'failed')) not valid;
-- what an older gateway had suspended does not run, and what it was destroying shall go
update gateway.slices
set wanted = case status when 'suspended' then 'stopped' else 'absent' end
where status in ('suspended', 'destroying');

-- sessions: the 90 days at most of an adopted session count from its adoption -------------------------------------
alter table gateway.sessions
    add column if not exists ref uuid not null default gen_random_uuid() unique,
    add column if not exists started_at timestamptz not null default gateway.clock(),
    add column if not exists extended_at timestamptz not null default gateway.clock(),
    add column if not exists ip text,
    add column if not exists user_agent text,
    alter column created_at set default gateway.clock();
create index if not exists sessions_user on gateway.sessions (user_id);
create index if not exists sessions_expiry on gateway.sessions (expires_at);
-- the clear tokens of the older gateway; a new database has none
update gateway.sessions set id = encode(sha256(convert_to(id, 'UTF8')), 'hex');

-- one live slice a user; one that is being destroyed does not stand in the way of the next
create unique index if not exists slices_one_per_user on gateway.slices (user_id) where status <> 'destroying';

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

create index if not exists events_newest on gateway.events (created_at desc, id desc);
create index if not exists events_open on gateway.events (kind, slice_id) where resolved_at is null;

-- who refers to whom, where the older gateway has not said so itself; what it left dangling stays as it is
do $$
declare
    arrow record;
begin
    for arrow in
        select * from (values
            ('users', 'slice_id', 'slices', 'set null'), ('slices', 'user_id', 'users', 'no action'),
            ('sessions', 'user_id', 'users', 'cascade'), ('telemetry', 'slice_id', 'slices', 'cascade')
        ) as a (origin, field, target, deleting)
        where not exists (
            select from pg_constraint c
            join pg_attribute t on t.attrelid = c.conrelid and t.attname = a.field and c.conkey = array[t.attnum]
            where c.contype = 'f' and c.conrelid = ('gateway.' || a.origin)::regclass)
    loop
        execute format(
            'alter table gateway.%I add foreign key (%I) references gateway.%I on delete %s not valid',
            arrow.origin, arrow.field, arrow.target, arrow.deleting);
    end loop;
end $$;
create index if not exists users_slice on gateway.users (slice_id);
