-- migrate:up
-- The tables the older gateway made. On a new database they are created; on an old one every statement finds
-- its work done and only what is missing is added. No column here is ever renamed or retyped.

create table if not exists gateway.users (
    id serial primary key,
    email text not null unique,
    password_hash text
);
alter table gateway.users
    add column if not exists slice_id int,
    add column if not exists stripe_customer text,
    add column if not exists subscription_status text default 'trial',
    add column if not exists subscription_id text,
    add column if not exists subscription_ends_at timestamptz,
    add column if not exists is_admin boolean default false,
    add column if not exists created_at timestamptz default now(),
    add column if not exists last_login_at timestamptz;

create table if not exists gateway.slices (
    id serial primary key,
    port int not null unique
);
alter table gateway.slices
    add column if not exists status text default 'available',
    add column if not exists user_id int,
    add column if not exists wa_connected boolean default false,
    add column if not exists wa_phone text,
    add column if not exists last_health_at timestamptz,
    add column if not exists created_at timestamptz default now(),
    add column if not exists storage_bytes bigint default 0;

create table if not exists gateway.sessions (
    id text primary key,
    user_id int not null
);
alter table gateway.sessions
    add column if not exists expires_at timestamptz not null default now() + interval '30 days',
    add column if not exists created_at timestamptz default now();

create table if not exists gateway.telemetry (
    id bigserial primary key,
    slice_id int
);
alter table gateway.telemetry
    add column if not exists timestamp timestamptz default now(),
    add column if not exists rss_bytes bigint,
    add column if not exists swap_bytes bigint,
    add column if not exists wa_state text,
    add column if not exists idle_seconds int,
    add column if not exists cpu_percent numeric,
    add column if not exists disk_bytes bigint;

create table if not exists gateway.server_telemetry (
    id bigserial primary key
);
alter table gateway.server_telemetry
    add column if not exists timestamp timestamptz default now(),
    add column if not exists ram_used_bytes bigint,
    add column if not exists ram_total_bytes bigint,
    add column if not exists swap_used_bytes bigint,
    add column if not exists swap_total_bytes bigint,
    add column if not exists swap_in_rate bigint,
    add column if not exists cpu_percent real,
    add column if not exists disk_used_bytes bigint,
    add column if not exists disk_total_bytes bigint,
    add column if not exists active_slices int,
    add column if not exists total_slices int;

create table if not exists gateway.events (
    id bigserial primary key
);
alter table gateway.events
    add column if not exists slice_id int,
    add column if not exists user_id int,
    add column if not exists kind text,
    add column if not exists severity text,
    add column if not exists detail jsonb,
    add column if not exists created_at timestamptz default now(),
    add column if not exists resolved_at timestamptz;

create index if not exists idx_telemetry_slice_time on gateway.telemetry (slice_id, timestamp desc);
create index if not exists idx_server_telemetry_time on gateway.server_telemetry (timestamp desc);
