-- A database as the older gateway left it: its tables in their old form, owned by its own role, and a few hundred rows.

do $$
begin
    if not exists (select from pg_roles where rolname = 'wank_gateway') then
        create role wank_gateway login;
    end if;
    -- one role for every slice's database: what this gateway does away with
    if not exists (select from pg_roles where rolname = 'wa_slice') then
        create role wa_slice login;
    end if;
end $$;

create schema gateway authorization wank_gateway;
set role wank_gateway;

create table gateway.slices (
    id serial primary key,
    port integer not null unique,
    status text not null default 'available' check (status in ('available', 'assigned', 'suspended', 'destroying')),
    user_id integer,
    wa_connected boolean default false,
    wa_phone text,
    last_health_at timestamptz,
    created_at timestamptz default now(),
    storage_bytes bigint default 0 check (storage_bytes >= 0)
);

create table gateway.users (
    id serial primary key,
    email text unique not null,
    password_hash text not null,
    slice_id integer references gateway.slices (id),
    stripe_customer text,
    subscription_status text default 'trial',
    subscription_id text,
    subscription_ends_at timestamptz,
    is_admin boolean,
    created_at timestamptz default now(),
    last_login_at timestamptz,
    constraint known_subscription check (subscription_status in ('trial', 'active', 'past_due', 'cancelled')),
    constraint email_has_at check (position('@' in email) > 1)
);

alter table gateway.slices
    add constraint slices_user foreign key (user_id) references gateway.users (id) deferrable initially deferred;

create table gateway.sessions (
    id text primary key,
    user_id integer not null references gateway.users (id) on delete cascade,
    expires_at timestamptz not null,
    created_at timestamptz default now()
);
create index sessions_user on gateway.sessions (user_id);

create table gateway.telemetry (
    id bigserial primary key,
    slice_id integer references gateway.slices (id),
    timestamp timestamptz default now(),
    rss_bytes bigint,
    swap_bytes bigint,
    wa_state text
);
create index idx_telemetry_slice_time on gateway.telemetry (slice_id, timestamp desc);

create table gateway.server_telemetry (
    id bigserial primary key,
    timestamp timestamptz default now(),
    ram_used_bytes bigint,
    ram_total_bytes bigint,
    swap_used_bytes bigint,
    swap_total_bytes bigint,
    swap_in_rate bigint check (swap_in_rate >= 0)
);

create table gateway.alerts_sent (kind text, sent_at timestamptz default now());

-- sixty slices: forty assigned, ten available, six suspended, four being destroyed
insert into gateway.slices (port, status, wa_connected, wa_phone, last_health_at, created_at)
select 5001 + (n - 1) * 2,
       case when n <= 40 then 'assigned' when n <= 50 then 'available' when n <= 56 then 'suspended' else 'destroying' end,
       case when n % 7 = 0 then null else n <= 40 end,
       case when n <= 40 then '+4912345' || n end,
       now() - n * interval '1 minute',
       case when n % 11 = 0 then null else now() - n * interval '1 day' end
from generate_series(1, 60) n;

-- a hundred and twenty users; every third wrote the address with capitals; the password of all is the same
insert into gateway.users
    (email, password_hash, slice_id, stripe_customer, subscription_status, subscription_id, is_admin, created_at,
     last_login_at)
select case when n % 3 = 0 then 'Customer.' || n || '@Example.COM' else 'customer.' || n || '@example.com' end,
       case when n % 2 = 0 then '$2b$12$NrcAEy23F/Jll0m2.FjsIOgV5ZYG8y2xg9pIkf1HXndVWVkTXbZKG'
            else '$2a$10$ylVl9ap/jauEYKFV/lieK.eV6dJ0h01Dc4QFQYiny3JtrBNCvDVJy' end,
       case when n <= 40 then n when n between 51 and 56 then n end,
       case when n <= 60 then 'cus_' || n end,
       case when n <= 40 then 'active' when n <= 56 then 'past_due' when n <= 60 then 'cancelled'
            when n % 5 = 0 then null else 'trial' end,
       case when n <= 60 then 'sub_' || n end,
       case when n = 1 then true when n % 4 = 0 then false end,
       case when n % 13 = 0 then null else now() - n * interval '3 days' end,
       case when n <= 60 then now() - n * interval '1 hour' end
from generate_series(1, 120) n;
update gateway.slices s set user_id = u.id from gateway.users u where u.slice_id = s.id;

-- addresses that are one and the same in lower case
insert into gateway.users (email, password_hash, last_login_at) values
    ('Carla@Example.com', 'hash of Carla with capitals', now()),
    ('carla@example.com', 'hash of carla without', null),
    ('BOB@example.com', 'hash of BOB, who logged in', now()),
    ('Bob@example.com', 'hash of Bob, who never did', null),
    (' dora@example.com ', 'hash of dora, who has blanks', null);

-- a slice that only its own row gives to user 20, who has another; and one that only the user's row knows of
update gateway.slices set user_id = 20 where port = 5001 + 40 * 2;
update gateway.slices set user_id = null where port = 5001 + 29 * 2;

-- two hundred sessions with the clear token of the cookie: md5 of the number twice, 64 hexadecimal characters
insert into gateway.sessions (id, user_id, expires_at, created_at)
select md5(n::text) || md5('again ' || n), 1 + n % 120,
       case when n > 180 then now() - interval '1 day' else now() + n % 30 * interval '1 day' + interval '1 hour' end,
       now() - n % 200 * interval '1 day'
from generate_series(1, 200) n;

insert into gateway.telemetry (slice_id, timestamp, rss_bytes, swap_bytes, wa_state)
select 1 + n % 60, now() - n * interval '1 minute', n * 1000, 0, 'CONNECTED' from generate_series(1, 600) n;
insert into gateway.server_telemetry (ram_used_bytes, ram_total_bytes, swap_used_bytes, swap_total_bytes, swap_in_rate)
select n, 1000000, 0, 0, 0 from generate_series(1, 50) n;
insert into gateway.alerts_sent (kind) values ('something the older gateway kept');

reset role;
