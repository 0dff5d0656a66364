-- migrate:up
-- Moving slices to another image, one rollout at a time, and how far each slice has come in it.

create table gateway.rollouts (
    id bigserial primary key,
    image text not null,
    -- what the image's name stood for when it was asked for: a tag may move while slices are replaced
    image_id text not null,
    batch int not null check (batch > 0),
    canary int not null check (canary >= 0),
    -- null for all that can be moved without being named
    only_slices int[],
    who text not null,
    state text not null default 'running'
        check (state in ('running', 'paused', 'done', 'failed', 'returned', 'aborted')),
    reason text,
    job_id bigint references gateway.jobs on delete set null,
    created_at timestamptz not null default gateway.clock(),
    finished_at timestamptz
);
create unique index rollouts_one_at_a_time on gateway.rollouts ((true)) where finished_at is null;

create table gateway.rollout_slices (
    rollout_id bigint not null references gateway.rollouts on delete cascade,
    slice_id int not null, -- no reference: what became of a slice that is gone can still be read
    phase text not null check (phase in ('pending', 'updating', 'updated', 'returning', 'returned', 'skipped')),
    stage text check (stage in ('warm', 'canary', 'batch')),
    step text,
    reason text,
    -- what the row said before, and what really ran: the way back
    row_image text,
    old_image text,
    wa_state_before text,
    phone_mark text, -- a digest: whether it is the same phone, not which
    noted_at timestamptz,
    restored_at timestamptz,
    began_at timestamptz,
    finished_at timestamptz,
    primary key (rollout_id, slice_id)
);
create index rollout_slices_under_way on gateway.rollout_slices (slice_id) where phase in ('updating', 'returning');

-- Slices that a rollout has for itself: nobody else starts, stops or gives them away. A rollout whose job is over holds
-- nothing, however it ended.
create view gateway.held_slices as
select s.slice_id
from gateway.rollout_slices s
join gateway.rollouts r on r.id = s.rollout_id and r.finished_at is null
join gateway.jobs j on j.id = r.job_id and j.finished_at is null
where s.phase in ('updating', 'returning');

-- What new slices are made from since the last rollout that was done. It holds for as long as the setting is what it was
-- then: an operator who changes the setting means it.
create table gateway.current_image (
    only_row boolean primary key default true check (only_row),
    image text not null,
    setting text not null,
    since timestamptz not null default gateway.clock()
);

-- one warning for each time that a slice's media come near their limit
alter table gateway.slices
    add column if not exists storage_asked_at timestamptz,
    add column if not exists storage_warned_at timestamptz;
