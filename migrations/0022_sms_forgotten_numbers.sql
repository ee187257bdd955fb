-- Numbers and parameters of requests for text messages can be forgotten: for their age, or because the person asks for it. The row
-- stays: it is what makes a repetition of the request harmless. Its hashes go too, since a number can be found from them by trying.
alter table onceflow.sms_request
    add column forgotten_at timestamptz,
    drop constraint sms_request_accepted_whole,
    add constraint sms_request_accepted_whole check (state <> 'accepted' or (reason is null
        and num_nulls(template_version, class, signature, encoding, segments, expires_at) = 0
        and (forgotten_at is not null or num_nulls(content, phone, params) = 0))) not valid,
    add constraint sms_request_forgotten check (forgotten_at is null
        or (num_nonnulls(content, phone, params) = 0 and phone_given = '' and fingerprint = '')) not valid;
-- The oldest whose number is still known.
create index sms_request_known_since on onceflow.sms_request (requested_at) where forgotten_at is null;
-- Numbers that nobody could read, among which a person's may be.
create index sms_request_unread_number on onceflow.sms_request (tenant) where phone is null and forgotten_at is null;
