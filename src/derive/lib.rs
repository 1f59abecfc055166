//! Owns: `#[derive(Record)]`, which makes a program's `repr(C)` struct a kind of record.
//!
//! What must hold: everything the store relies on (no padding, the shared header, columns of supported types, a
//! time to sort by, ids to find by) is checked when the program is compiled, and the compiler reports the reason.

use proc_macro::TokenStream;
use proc_macro2::TokenStream as Tokens;
use quote::{format_ident, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Data, DeriveInput, Error, Expr, Field, Fields, Ident, Lit, Result, Type};

/// Makes a kind of a `repr(C)` struct.
///
/// The struct derives `Clone` and `Copy`, and begins with `kind: Kind`, `source: u16`, `instrument:
/// InstrumentId`, `ts_event: Ts`. The attribute `#[record(kind = 0x8001, name = "signal", index = ts_recv,
/// find(order_id))]` sets the kind's number (from 0x8000 on), its name, the field of type `Ts` that sorts
/// its records (default: `ts_event`), and the fields of type `u64` by which records are found. The derive
/// implements `Record`, `Default` (null in each field that has a null, zero in the others) and the traits of `bytemuck`.
#[proc_macro_derive(Record, attributes(record))]
pub fn record(input: TokenStream) -> TokenStream {
    let input = syn::parse_macro_input!(input as DeriveInput);
    expand(&input).unwrap_or_else(|e| e.to_compile_error()).into()
}

/// The contents of `#[record(...)]`.
struct Attributes {
    kind: Expr,
    name: Expr,
    index: Ident,
    find: Vec<Ident>,
}

const USAGE: &str =
    "write #[record(kind = 0x8001, name = \"signal\", index = ts_recv, find(order_id))]; index and find may be left out";

fn attributes(input: &DeriveInput) -> Result<Attributes> {
    let (mut kind, mut name, mut index, mut find) = (None, None, None, Vec::new());
    let all: Vec<_> = input.attrs.iter().filter(|a| a.path().is_ident("record")).collect();
    let [attribute] = all.as_slice() else {
        return Err(Error::new(input.ident.span(), format!("a record needs one attribute #[record(...)]: {USAGE}")));
    };
    attribute.parse_nested_meta(|meta| {
        if meta.path.is_ident("kind") {
            kind = Some(meta.value()?.parse()?);
        } else if meta.path.is_ident("name") {
            name = Some(meta.value()?.parse()?);
        } else if meta.path.is_ident("index") {
            index = Some(meta.value()?.parse()?);
        } else if meta.path.is_ident("find") {
            meta.parse_nested_meta(|id| {
                find.push(id.path.get_ident().cloned().ok_or_else(|| id.error(USAGE))?);
                Ok(())
            })?;
        } else {
            return Err(meta.error(USAGE));
        }
        Ok(())
    })?;
    let missing = |what: &str| Error::new(attribute.span(), format!("{what} is missing: {USAGE}"));
    Ok(Attributes {
        kind: kind.ok_or_else(|| missing("kind"))?,
        name: name.ok_or_else(|| missing("name"))?,
        index: index.unwrap_or_else(|| format_ident!("ts_event")),
        find,
    })
}

/// The fields that every record begins with.
const HEADER: [&str; 4] = ["kind", "source", "instrument", "ts_event"];

fn fields(input: &DeriveInput) -> Result<Vec<&Field>> {
    let named = match &input.data {
        Data::Struct(data) => match &data.fields {
            Fields::Named(fields) => Some(fields.named.iter().collect::<Vec<_>>()),
            _ => None,
        },
        _ => None,
    };
    let packed = |a: &&syn::Attribute| a.path().is_ident("repr") && !is_c(a);
    if let Some(repr) = input.attrs.iter().find(packed) {
        return Err(Error::new(repr.span(), "a record has the plain layout of C: #[repr(C)] with nothing else in it"));
    }
    let named = named.ok_or_else(|| Error::new(input.ident.span(), "a record is a struct with named fields"))?;
    let begins = named.iter().zip(HEADER).filter(|(f, name)| f.ident.as_ref().is_some_and(|i| i == name)).count();
    if begins != HEADER.len() {
        let what = "a record begins with the fields kind: Kind, source: u16, instrument: InstrumentId, ts_event: Ts";
        return Err(Error::new(named.first().map_or(input.ident.span(), |f| f.span()), what));
    }
    if !input.generics.params.is_empty() {
        return Err(Error::new(input.generics.span(), "a record has one layout: it cannot be generic"));
    }
    Ok(named)
}

/// Whether `repr` is `C` and nothing else.
fn is_c(repr: &syn::Attribute) -> bool {
    let (mut found, mut only) = (false, true);
    let parsed = repr.parse_nested_meta(|meta| {
        found |= meta.path.is_ident("C");
        only &= meta.path.is_ident("C");
        Ok(())
    });
    parsed.is_ok() && found && only
}

fn is_u8(of: &Type) -> bool {
    matches!(of, Type::Path(p) if p.path.is_ident("u8"))
}

/// The columns of a field: one, or one for each element of an array other than text.
fn columns(owner: &Ident, field: &Field) -> Result<Vec<Tokens>> {
    let Some(ident) = &field.ident else { return Ok(Vec::new()) };
    let (name, of) = (ident.to_string(), &field.ty);
    let name = name.trim_start_matches("r#").to_owned();
    let offset = quote!(::core::mem::offset_of!(#owner, #ident));
    let column =
        |name: String, offset: Tokens, of: Tokens| quote!(::tapestore::record::Column { name: #name, offset: #offset, of: #of });
    let spanned = |of: &Type| quote_spanned!(of.span()=> <#of as ::tapestore::record::Field>::OF);
    match of {
        Type::Array(array) if is_u8(&array.elem) => {
            let len = &array.len;
            let of = if name == "reserved" || name.starts_with("reserved_") {
                quote!(::tapestore::record::ColumnType::Reserved(#len))
            } else {
                spanned(of)
            };
            Ok(vec![column(name, offset, of)])
        }
        Type::Array(array) => {
            let len = match &array.len {
                Expr::Lit(lit) => match &lit.lit {
                    Lit::Int(n) => n.base10_parse::<usize>()?,
                    other => return Err(Error::new(other.span(), "the length of an array is a number")),
                },
                other => {
                    return Err(Error::new(
                        other.span(),
                        "write the length of an array as a number: its columns are named by it",
                    ));
                }
            };
            let elem = &array.elem;
            let each = |i: usize| {
                let at = quote!(#offset + #i * ::core::mem::size_of::<#elem>());
                column(format!("{name}_{i}"), at, spanned(elem))
            };
            Ok((0..len).map(each).collect())
        }
        _ => Ok(vec![column(name, offset, spanned(of))]),
    }
}

/// What the compiler checks of the record `owner`, whose fields are of `types`.
fn checks(owner: &Ident, types: &[&Type], index: &Ident, find: &[Ident]) -> Tokens {
    // The header is checked by its types; the other fields, and the elements of arrays, are columns.
    let is_field = types.iter().skip(HEADER.len()).map(|of| {
        let of = match of {
            Type::Array(array) if !is_u8(&array.elem) => &*array.elem,
            of => *of,
        };
        quote_spanned!(of.span()=> is_field::<#of>();)
    });
    quote! {
        const _: () = {
            const fn is_field<T: ::tapestore::record::Field>() {}
            const fn header(record: &#owner) -> (&::tapestore::record::Kind, &u16, &::tapestore::lsn::InstrumentId, &::tapestore::time::Ts) {
                (&record.kind, &record.source, &record.instrument, &record.ts_event)
            }
            const fn sorts(record: &#owner) -> &::tapestore::time::Ts { &record.#index }
            #( const _: fn(&#owner) -> &u64 = |record| &record.#find; )*
            let _ = (header as fn(_) -> _, sorts as fn(_) -> _);
            #( #is_field )*
            assert!(
                0 #( + ::core::mem::size_of::<#types>() )* == ::core::mem::size_of::<#owner>(),
                "the record has padding: put larger fields first, and fill the rest with a field reserved: [u8; N]"
            );
            assert!(::core::mem::size_of::<#owner>() % 8 == 0, "a record is a multiple of 8 bytes: add a field reserved: [u8; N]");
            assert!(::core::mem::align_of::<#owner>() == 8, "a record is aligned to 8 bytes");
        };
    }
}

fn expand(input: &DeriveInput) -> Result<Tokens> {
    let owner = &input.ident;
    let fields = fields(input)?;
    if !input.attrs.iter().any(|a| a.path().is_ident("repr")) {
        return Err(Error::new(owner.span(), "a record has the layout of C: write #[repr(C)] above it"));
    }
    let Attributes { kind, name, index, find } = attributes(input)?;
    for named in find.iter().chain([&index]) {
        if !fields.iter().any(|f| f.ident.as_ref() == Some(named)) {
            return Err(Error::new(named.span(), format!("there is no field '{named}'")));
        }
    }
    let types: Vec<&Type> = fields.iter().map(|f| &f.ty).collect();
    let mut list = vec![
        quote!(::tapestore::record::Column { name: "source", offset: 2, of: ::tapestore::record::ColumnType::U16 }),
        quote!(::tapestore::record::Column { name: "instrument", offset: 4, of: ::tapestore::record::ColumnType::U32 }),
        quote!(::tapestore::record::Column { name: "ts_event", offset: 8, of: ::tapestore::record::ColumnType::Ts }),
    ];
    for field in fields.iter().skip(HEADER.len()) {
        list.extend(columns(owner, field)?);
    }
    let find_names: Vec<String> = find.iter().map(|id| id.to_string().trim_start_matches("r#").to_owned()).collect();
    let checks = checks(owner, &types, &index, &find);
    Ok(quote! {
        #checks

        // SAFETY: all zero bits are a value of every field, because each is `Pod` (a `Field` is); the assertions above check it.
        unsafe impl ::tapestore::bytemuck::Zeroable for #owner {}
        // SAFETY: `repr(C)`, every field is `Pod`, and there is no padding; the assertions above check it.
        unsafe impl ::tapestore::bytemuck::Pod for #owner {}

        impl ::core::default::Default for #owner {
            fn default() -> Self {
                const ABSENT: [u64; ::core::mem::size_of::<#owner>() / 8] =
                    <#owner as ::tapestore::record::Record>::SCHEMA.absent();
                ::tapestore::bytemuck::cast(ABSENT)
            }
        }

        impl ::tapestore::record::Record for #owner {
            const SCHEMA: ::tapestore::record::Schema = ::tapestore::record::Schema::new(
                ::tapestore::record::Kind(#kind),
                #name,
                ::core::mem::size_of::<#owner>() / 8,
                ::core::mem::offset_of!(#owner, #index) / 8,
                &[ #(#list),* ],
                &[ #(#find_names),* ],
            );
        }

        const _: () = ::tapestore::record::assert_layout(&<#owner as ::tapestore::record::Record>::SCHEMA);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> String {
        let input: DeriveInput = syn::parse_str(text).unwrap_or_else(|e| panic!("{e}"));
        expand(&input).map_or_else(|e| e.to_string(), |_| "accepted".to_owned())
    }

    #[test]
    fn a_struct_that_cannot_be_a_record_is_refused_with_the_reason() {
        let header = "kind: Kind, source: u16, instrument: InstrumentId, ts_event: Ts";
        let attribute = "#[record(kind = 0x8001, name = \"s\")]";
        let good = format!("#[repr(C)] {attribute} struct S {{ {header}, a: u64 }}");
        assert_eq!(message(&good), "accepted");
        for (text, why) in [
            (format!("{attribute} struct S {{ {header} }}"), "write #[repr(C)]"),
            (format!("#[repr(C, packed)] {attribute} struct S {{ {header} }}"), "nothing else in it"),
            (format!("#[repr(C)] struct S {{ {header} }}"), "needs one attribute"),
            (format!("#[repr(C)] #[record(name = \"s\")] struct S {{ {header} }}"), "kind is missing"),
            (format!("#[repr(C)] #[record(kind = 1, name = \"s\", colour = 2)] struct S {{ {header} }}"), "write #[record("),
            (format!("#[repr(C)] #[record(kind = 1, name = \"s\", find(b))] struct S {{ {header} }}"), "no field 'b'"),
            (format!("#[repr(C)] {attribute} struct S {{ a: u64 }}"), "begins with the fields"),
            (format!("#[repr(C)] {attribute} struct S<T> {{ {header}, a: T }}"), "cannot be generic"),
            (format!("#[repr(C)] {attribute} struct S {{ {header}, a: [u64; N] }}"), "as a number"),
            (format!("#[repr(C)] {attribute} enum S {{ A }}"), "a struct with named fields"),
        ] {
            let found = message(&text);
            assert!(found.contains(why), "{text}: {found}");
        }
    }
}
