-- migrate:up
-- Leaving: what a customer's removal has done so far and what it did, told to whoever holds its link; and who was
-- removed, so that a database restored from before that can be cleared of them again.

create table gateway.receipts (
    id uuid primary key default gen_random_uuid(),
    -- the SHA-256 of the link's secret; none where nobody was given a link
    token_hash text unique,
    -- until it is finished, and not a moment longer
    user_id int,
    step text,
    percent int not null default 0 check (percent between 0 and 100),
    -- when each step was proven
    steps jsonb not null default '{}',
    -- by uuid: what each slice was and held
    slices jsonb not null default '{}',
    -- rows of the gateway's own tables, by table
    removed jsonb not null default '{}',
    document jsonb,
    requested_at timestamptz not null default gateway.clock(),
    finished_at timestamptz
);
create unique index receipts_one_under_way on gateway.receipts (user_id) where finished_at is null;

-- an id alone does not name a person for ever: a database that is made anew begins again at 1
create table gateway.erasures (
    user_id int not null,
    user_created_at timestamptz not null,
    slices uuid[] not null,
    erased_at timestamptz not null,
    primary key (user_id, user_created_at)
);

-- whose data a slice holds that was taken from its customer, whoever took it
alter table gateway.slices add column if not exists former_user_id int;
update gateway.slices s set former_user_id = e.user_id
from gateway.events e
where e.kind = 'slice_detached' and e.slice_id = s.id and s.user_id is null and s.former_user_id is null;
create index if not exists slices_former_user on gateway.slices (former_user_id) where former_user_id is not null;

create function gateway.remember_former_user() returns trigger language plpgsql as $$
begin
    new.former_user_id := old.user_id;
    return new;
end $$;
create trigger remember_former_user before update of user_id on gateway.slices for each row
    when (old.user_id is not null and new.user_id is distinct from old.user_id)
    execute function gateway.remember_former_user();
