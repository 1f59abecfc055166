//! Owns: the part of `tapestore.h` that the sources of this package make: handles, enums, structs, calls.
//!
//! What must hold: a type that C cannot have fails here, it is never left out.

use std::fs;
use std::path::{Path, PathBuf};

use syn::{Attribute, Expr, Fields, FnArg, GenericArgument, Item, Lit, Meta, Pat, PathArguments, ReturnType, Type, Visibility};

/// The order of the header: the items of these sources are first, those of others follow.
const FIRST: [&str; 11] =
    ["status", "options", "lib", "record", "publisher", "subscriber", "reader", "snapshot", "rows", "columns", "follow"];

/// All sources in `dir`, in the order of the header.
fn sources(dir: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut sources: Vec<_> = files.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect();
    let place = |path: &PathBuf| FIRST.iter().position(|first| path.file_stem().is_some_and(|stem| stem == *first));
    sources.sort_by_cached_key(|path| (place(path).unwrap_or(FIRST.len()), path.clone()));
    assert!(sources.iter().filter_map(place).eq(0..FIRST.len()), "each of {FIRST:?} is in {}", dir.display());
    sources
}

/// The types and the calls of the sources in `dir`.
pub(crate) fn all(dir: &Path) -> String {
    let (mut types, mut handles, mut calls) = (String::new(), String::new(), String::new());
    for source in sources(dir) {
        let text = fs::read_to_string(source).unwrap();
        for item in syn::parse_file(&text).unwrap().items {
            match item {
                Item::Enum(item) if is_public(&item.vis) => types += &enumeration(&item),
                Item::Struct(item) if is_public(&item.vis) && has_repr(&item.attrs, "C") => types += &structure(&item),
                // A pointer or a number; `type_of` has its type of C.
                Item::Struct(item) if has_repr(&item.attrs, "transparent") => {}
                Item::Struct(item) if is_public(&item.vis) => {
                    let name = name_of(&item.ident.to_string());
                    handles += &format!("\n{}typedef struct {name} {name};\n", comment(&item.attrs, ""));
                }
                Item::Fn(item) if item.sig.abi.is_some() => calls += &call(&item),
                _ => {}
            }
        }
    }
    format!("{handles}{types}{calls}")
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

fn has_repr(attributes: &[Attribute], repr: &str) -> bool {
    let is = |meta: &Meta| matches!(meta, Meta::List(list) if list.path.is_ident("repr") && list.tokens.to_string() == repr);
    attributes.iter().any(|attribute| is(&attribute.meta))
}

/// The comment of an item, indented by `indent`.
fn comment(attributes: &[Attribute], indent: &str) -> String {
    let lines: Vec<String> = attributes.iter().filter_map(doc).collect();
    match lines.as_slice() {
        [] => panic!("an item without a comment"),
        [line] => format!("{indent}/** {line} */\n"),
        lines => {
            let rest: String = lines.iter().map(|line| format!("{indent} * {line}").trim_end().to_owned() + "\n").collect();
            format!("{indent}/**\n{rest}{indent} */\n")
        }
    }
}

/// A line of a comment.
fn doc(attribute: &Attribute) -> Option<String> {
    let Meta::NameValue(pair) = &attribute.meta else { return None };
    let Expr::Lit(value) = &pair.value else { return None };
    let (true, Lit::Str(text)) = (pair.path.is_ident("doc"), &value.lit) else { return None };
    Some(text.value().trim().to_owned())
}

/// `PublisherOptions` is `tapestore_publisher_options`.
fn name_of(name: &str) -> String {
    format!("tapestore_{}", words(name).to_lowercase())
}

/// `StorageDown` is `Storage_Down`.
fn words(name: &str) -> String {
    let mut words = String::new();
    for c in name.chars() {
        if c.is_uppercase() && !words.is_empty() {
            words.push('_');
        }
        words.push(c);
    }
    words
}

fn enumeration(item: &syn::ItemEnum) -> String {
    let name = name_of(&item.ident.to_string());
    let prefix = name.strip_suffix("_status").or(name.strip_suffix("_type")).unwrap_or(&name).to_uppercase();
    let mut text = format!("\n{}typedef enum {name} {{\n", comment(&item.attrs, ""));
    for variant in &item.variants {
        let Some((_, Expr::Lit(number))) = &variant.discriminant else { panic!("{name}: a variant without a number") };
        let Lit::Int(number) = &number.lit else { panic!("{name}: a variant without a number") };
        let word = words(&variant.ident.to_string()).to_uppercase();
        text += &format!("{}    {prefix}_{word} = {number},\n", comment(&variant.attrs, "    "));
    }
    // C++11 and C11 accept the last comma.
    format!("{text}}} {name};\n")
}

fn structure(item: &syn::ItemStruct) -> String {
    let name = name_of(&item.ident.to_string());
    let Fields::Named(fields) = &item.fields else { panic!("{name} has no named fields") };
    let mut text = format!("\n{}typedef struct {name} {{\n", comment(&item.attrs, ""));
    for field in &fields.named {
        let declared = declare(&type_of(&field.ty), field.ident.as_ref().unwrap().to_string().trim_start_matches("r#"));
        text += &format!("{}    {declared};\n", comment(&field.attrs, "    "));
    }
    format!("{text}}} {name};\n")
}

fn call(item: &syn::ItemFn) -> String {
    let result = match &item.sig.output {
        ReturnType::Default => "void".to_owned(),
        ReturnType::Type(_, of) => type_of(of),
    };
    let arguments: Vec<String> = item.sig.inputs.iter().map(argument).collect();
    let head = declare(&result, &item.sig.ident.to_string());
    let whole = format!("{head}({});\n", if arguments.is_empty() { "void".to_owned() } else { arguments.join(", ") });
    let text = match whole.len() {
        ..=120 => whole,
        _ => format!("{head}(\n    {});\n", arguments.join(",\n    ")),
    };
    format!("\n{}{text}", comment(&item.attrs, ""))
}

fn argument(argument: &FnArg) -> String {
    let FnArg::Typed(argument) = argument else { panic!("a call has no self") };
    let Pat::Ident(name) = argument.pat.as_ref() else { panic!("an argument has a name") };
    declare(&type_of(&argument.ty), &name.ident.to_string())
}

/// `name` as an `of`: a star stands beside the name.
fn declare(of: &str, name: &str) -> String {
    if of.ends_with('*') { format!("{of}{name}") } else { format!("{of} {name}") }
}

/// A pointer to `of`.
fn pointer(of: &str) -> String {
    declare(of, "*")
}

/// The type of C for one of Rust.
fn type_of(of: &Type) -> String {
    match of {
        Type::Ptr(to) => {
            let constant = if to.const_token.is_some() { "const " } else { "" };
            pointer(&format!("{constant}{}", type_of(&to.elem)))
        }
        Type::Path(path) => {
            let last = path.path.segments.last().unwrap();
            named(&last.ident.to_string(), &last.arguments)
        }
        _ => panic!("a type that C does not have"),
    }
}

fn named(name: &str, arguments: &PathArguments) -> String {
    let first = || -> &Type {
        let PathArguments::AngleBracketed(all) = arguments else { panic!("{name} without arguments") };
        let types = all.args.iter().filter_map(|a| if let GenericArgument::Type(of) = a { Some(of) } else { None });
        types.last().unwrap_or_else(|| panic!("{name} without a type"))
    };
    let simple = match name {
        "u8" => "uint8_t",
        "u16" => "uint16_t",
        "u32" => "uint32_t",
        "i32" => "int32_t",
        "u64" => "uint64_t",
        "usize" | "Count" => "size_t",
        "bool" => "bool",
        "c_int" => "int",
        "c_char" => "char",
        "c_void" => "void",
        "Text" => "const char *",
        "Buffer" => "char *",
        // A record of any kind.
        "Space" => "void *",
        // A handle or an argument that may be NULL, and a handle that goes to its close.
        "Option" => {
            return match first() {
                Type::Reference(to) => {
                    let constant = if to.mutability.is_none() { "const " } else { "" };
                    pointer(&format!("{constant}{}", type_of(&to.elem)))
                }
                of => type_of(of),
            };
        }
        "Box" | "Out" => return pointer(&type_of(first())),
        "Array" => {
            return match type_of(first()).as_str() {
                // A record of any kind.
                "uint8_t" => "const void *".to_owned(),
                of if of.ends_with('*') => format!("{of}const *"),
                of => pointer(&format!("const {of}")),
            };
        }
        name => return name_of(name),
    };
    simple.to_owned()
}
