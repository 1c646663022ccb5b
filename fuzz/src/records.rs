use opengrid_protocol::{Record, Signed, beacon::Beacon, codec::DecodeError, sealing_key::SealingKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error, ser::SerializeTuple};

const NOW_MS: u64 = 1_800_000_000_000;

/// The bytes as a record from the network; and as the payload of a record that a hostile node signed properly.
pub fn signed_records(data: &[u8]) {
    if let Ok(signed) = Signed::from_bytes(data) {
        assert_eq!(Signed::from_bytes(&signed.to_bytes()).as_ref(), Ok(&signed));
        open::<Beacon>(&signed);
        open::<SealingKey>(&signed);
    }
    open::<Beacon>(&Signed::seal(&AnyBeacon(data.to_vec()), &[1; 32]));
    open::<SealingKey>(&Signed::seal(&AnySealingKey(data.to_vec()), &[1; 32]));
}

/// What opens holds now (but for the skew of clocks) and within its limits.
fn open<T: Record>(signed: &Signed) {
    if let Ok(record) = signed.open::<T>(NOW_MS) {
        assert!(record.validity_ms().1 >= NOW_MS);
        assert_eq!(record.check(), Ok(()));
    }
}

struct AnyBeacon(Vec<u8>);
struct AnySealingKey(Vec<u8>);

/// A record whose encoding is any bytes, under the domain of a real one.
macro_rules! raw_record {
    ($type:ident, $real:ident) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let mut tuple = serializer.serialize_tuple(self.0.len())?;
                for byte in &self.0 {
                    tuple.serialize_element(byte)?;
                }
                tuple.end()
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
                Err(D::Error::custom("only written"))
            }
        }

        impl Record for $type {
            const DOMAIN: &'static str = $real::DOMAIN;

            fn validity_ms(&self) -> (u64, u64) {
                (0, u64::MAX)
            }

            fn check(&self) -> Result<(), DecodeError> {
                Ok(())
            }
        }
    };
}

raw_record!(AnyBeacon, Beacon);
raw_record!(AnySealingKey, SealingKey);
