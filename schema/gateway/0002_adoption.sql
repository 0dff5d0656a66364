-- migrate:up
-- What an older gateway may have left in its rows and rules, put right without losing any of it. On a new database
-- every statement here finds nothing to do.

-- foreign keys that wait for the commit would forbid changing a table after its rows
set constraints all immediate;

-- its rules for these columns know only its own words
do $$
declare
    rule record;
begin
    for rule in
        select c.conrelid::regclass as of, c.conname as name
        from pg_constraint c
        join pg_attribute a on a.attrelid = c.conrelid and a.attnum = any (c.conkey)
        where c.contype = 'c'
          and (c.conrelid, a.attname) in (
              ('gateway.slices'::regclass, 'status'), ('gateway.users'::regclass, 'subscription_status'))
    loop
        execute format('alter table %s drop constraint if exists %I', rule.of, rule.name);
    end loop;
end $$;

-- the alert log outlives what it tells of
do $$
declare
    rule record;
begin
    for rule in select conname as name from pg_constraint where conrelid = 'gateway.events'::regclass and contype = 'f'
    loop
        execute format('alter table gateway.events drop constraint %I', rule.name);
    end loop;
end $$;

-- columns that were optional there and are relied on here
update gateway.users set is_admin = false where is_admin is null;
update gateway.users set subscription_status = 'trial' where subscription_status is null;
update gateway.users set created_at = coalesce(last_login_at, now()) where created_at is null;
update gateway.slices set wa_connected = false where wa_connected is null;
update gateway.slices set created_at = now() where created_at is null;
update gateway.slices set storage_bytes = 0 where storage_bytes is null;
update gateway.slices set status = case when user_id is null then 'available' else 'assigned' end where status is null;
alter table gateway.users
    alter column is_admin set default false,
    alter column is_admin set not null,
    alter column subscription_status set default 'trial',
    alter column subscription_status set not null,
    alter column created_at set not null;
alter table gateway.slices
    alter column wa_connected set default false,
    alter column wa_connected set not null,
    alter column status set default 'available',
    alter column status set not null,
    alter column created_at set not null;

-- e-mail addresses in lower case. Where several accounts share one, the account that has it in lower case keeps it,
-- otherwise the one in use; the others stay as they are, whole, and an event tells an admin of each.
with ranked as (
    select id, lower(btrim(email)) as address,
           row_number() over (
               partition by lower(btrim(email))
               order by (email = lower(btrim(email))) desc, (slice_id is not null) desc,
                        last_login_at desc nulls last, id
           ) as place,
           first_value(id) over (
               partition by lower(btrim(email))
               order by (email = lower(btrim(email))) desc, (slice_id is not null) desc,
                        last_login_at desc nulls last, id
           ) as keeper
    from gateway.users
), lowered as (
    update gateway.users u set email = r.address
    from ranked r where r.id = u.id and r.place = 1 and u.email <> r.address
)
insert into gateway.events (user_id, kind, severity, detail)
select id, 'email_collision', 'warning', jsonb_build_object('kept_by_user_id', keeper)
from ranked where place > 1;

-- one live slice a user: the one that its row names, otherwise the newest; the others are detached, never destroyed
with ranked as (
    select s.id, s.user_id,
           row_number() over (partition by s.user_id order by (u.slice_id = s.id) is true desc, s.id desc) as place
    from gateway.slices s
    left join gateway.users u on u.id = s.user_id
    where s.user_id is not null and s.status <> 'destroying'
), detached as (
    update gateway.slices s set user_id = null, status = 'suspended'
    from ranked r where r.id = s.id and r.place > 1
)
insert into gateway.events (slice_id, user_id, kind, severity, detail)
select id, user_id, 'slice_detached', 'warning', '{"reason": "its user has another slice"}'
from ranked where place > 1;

-- a user's row names the slice that routes; where only that side was written the other follows
update gateway.slices s set user_id = u.id, status = case s.status when 'available' then 'assigned' else s.status end
from gateway.users u
where u.slice_id = s.id and s.user_id is null and s.status <> 'destroying'
  and not exists (select from gateway.slices o where o.user_id = u.id and o.status <> 'destroying')
  and not exists (select from gateway.users v where v.slice_id = s.id and v.id <> u.id);
