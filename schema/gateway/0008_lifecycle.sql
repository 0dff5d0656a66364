-- migrate:up
-- Why a slice is suspended, and that it is to be started anew.

alter table gateway.slices
    -- null where it is not, or where nobody has said why
    add column if not exists suspended_for text
        constraint slices_suspended_for_known check (suspended_for in ('admin', 'money')),
    -- the newest wish to end the process or container and start it again; null once that was done
    add column if not exists restart_wanted_at timestamptz;

drop trigger tell_changed on gateway.slices;
create trigger tell_changed
    after update of status, user_id, host, port, uuid, managed, wanted, image, suspended_for, restart_wanted_at
    on gateway.slices for each row
    when ((old.status, old.user_id, old.host, old.port, old.uuid, old.managed, old.wanted, old.image,
           old.suspended_for, old.restart_wanted_at)
        is distinct from (new.status, new.user_id, new.host, new.port, new.uuid, new.managed, new.wanted, new.image,
                          new.suspended_for, new.restart_wanted_at))
    execute function gateway.tell();

-- what an operator wants of the pool of warm slices, for every gateway process and across restarts, and how it fares
create table gateway.pool (
    only_row boolean primary key default true check (only_row),
    -- nothing is made by itself while this is set; what is warm is given away all the same
    paused boolean not null default false,
    -- how many slices stand warm; null leaves it to the settings of the service
    at_least int check (at_least between 0 and 1000),
    -- how many slices in a row could not be made
    failures int not null default 0
);
insert into gateway.pool default values;
create trigger tell_changed after update of paused, at_least on gateway.pool
    for each row execute function gateway.tell();
