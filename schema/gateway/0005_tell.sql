-- migrate:up
-- Changes that matter to a running gateway are told by the tables themselves, so that an operator's psql takes
-- effect as surely as our own statements. One channel; the payload is JSON: table, op, id, user_id, slice_id.

create function gateway.tell() returns trigger language plpgsql as $$
declare
    row jsonb;
    before jsonb;
begin
    if tg_op = 'TRUNCATE' then
        perform pg_notify('gateway', jsonb_build_object('table', tg_table_name, 'op', 'truncate')::text);
        return null;
    end if;
    row := to_jsonb(case when tg_op = 'DELETE' then old else new end);
    perform pg_notify('gateway', jsonb_build_object(
        'table', tg_table_name, 'op', lower(tg_op), 'id', row -> 'id',
        'user_id', row -> 'user_id', 'slice_id', row -> 'slice_id')::text);
    -- what changes hands concerns the one who had it as well, and what gets another name is still known by the old one
    if tg_op = 'UPDATE' then
        before := to_jsonb(old);
        if (before -> 'user_id', before -> 'id') is distinct from (row -> 'user_id', row -> 'id') then
            perform pg_notify('gateway', jsonb_build_object(
                'table', tg_table_name, 'op', 'update', 'id', before -> 'id',
                'user_id', before -> 'user_id', 'slice_id', before -> 'slice_id')::text);
        end if;
    end if;
    return null;
end $$;

create trigger tell after delete on gateway.sessions for each row execute function gateway.tell();
create trigger tell_moved after update of id, user_id on gateway.sessions for each row execute function gateway.tell();
create trigger tell_shortened after update of expires_at on gateway.sessions for each row
    when (new.expires_at < old.expires_at) execute function gateway.tell();
create trigger tell_all after truncate on gateway.sessions for each statement execute function gateway.tell();

create trigger tell after insert or delete on gateway.users for each row execute function gateway.tell();
create trigger tell_changed after update of slice_id, is_admin, suspended_at, deleting_at, subscription_status
    on gateway.users for each row
    when ((old.slice_id, old.is_admin, old.suspended_at, old.deleting_at, old.subscription_status)
        is distinct from (new.slice_id, new.is_admin, new.suspended_at, new.deleting_at, new.subscription_status))
    execute function gateway.tell();

create trigger tell after insert or delete on gateway.slices for each row execute function gateway.tell();
create trigger tell_changed after update of status, user_id, host, port, uuid, managed, wanted
    on gateway.slices for each row
    when ((old.status, old.user_id, old.host, old.port, old.uuid, old.managed, old.wanted)
        is distinct from (new.status, new.user_id, new.host, new.port, new.uuid, new.managed, new.wanted))
    execute function gateway.tell();

create trigger tell after insert on gateway.slice_steps for each row execute function gateway.tell();
create trigger tell after insert on gateway.outbox for each row execute function gateway.tell();
create trigger tell after update on gateway.clock_shift for each row execute function gateway.tell();
