-- migrate:up
-- Since when a slice is being brought up; nothing once it was well or the attempt failed. A slice that answered a
-- moment ago and was started since is not well because of that answer.
alter table gateway.slices add column if not exists starting_since timestamptz;

-- what a slice is made from decides whether it must name itself before it is sent anything: routes must hear of it
drop trigger tell_changed on gateway.slices;
create trigger tell_changed after update of status, user_id, host, port, uuid, managed, wanted, image
    on gateway.slices for each row
    when ((old.status, old.user_id, old.host, old.port, old.uuid, old.managed, old.wanted, old.image)
        is distinct from (new.status, new.user_id, new.host, new.port, new.uuid, new.managed, new.wanted, new.image))
    execute function gateway.tell();
