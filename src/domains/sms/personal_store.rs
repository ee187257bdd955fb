//! What the requests for text messages keep of the people who get them.

use crate::runtime::{Erasure, PersonalData};

/// A number that could not be read is compared by its digits alone.
const FIND: &str = "
    SELECT count(*) FROM onceflow.sms_request
    WHERE tenant = $1 AND $2::text IS NOT DISTINCT FROM $2::text
      AND (phone = ($3::text[])[1]
           OR phone IS NULL AND forgotten_at IS NULL AND regexp_replace(phone_given, '[^0-9]', '', 'g') = ANY ($3::text[]))";

const ERASE: &str = "
    WITH own AS MATERIALIZED (
        SELECT tenant, request_id FROM onceflow.sms_request
        WHERE tenant = $1 AND $2::text IS NOT DISTINCT FROM $2::text
          AND (phone = ($3::text[])[1]
               OR phone IS NULL AND forgotten_at IS NULL AND regexp_replace(phone_given, '[^0-9]', '', 'g') = ANY ($3::text[]))
        LIMIT $4::bigint FOR UPDATE
    )
    UPDATE onceflow.sms_request r
       SET phone = NULL, phone_given = '', params = NULL, content = NULL, fingerprint = '', forgotten_at = clock_timestamp()
      FROM own o WHERE r.tenant = o.tenant AND r.request_id = o.request_id";

const FORGET_OLD: &str = "
    WITH old AS MATERIALIZED (
        SELECT tenant, request_id FROM onceflow.sms_request
        WHERE requested_at < statement_timestamp() - $1 * interval '1 second' AND forgotten_at IS NULL
        ORDER BY requested_at LIMIT $2::bigint FOR UPDATE SKIP LOCKED
    )
    UPDATE onceflow.sms_request r
       SET phone = NULL, phone_given = '', params = NULL, content = NULL, fingerprint = '', forgotten_at = clock_timestamp()
      FROM old o WHERE r.tenant = o.tenant AND r.request_id = o.request_id";

/// Of this domain.
pub(super) const PERSONAL: &[PersonalData] =
    &[PersonalData { name: "sms_requests", find: FIND, erasure: Erasure::Now(ERASE), forget_old: Some(FORGET_OLD) }];
