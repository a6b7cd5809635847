// Collects findings, one per defect, and writes them as JSON for the Python side.
#include <dlfcn.h>

#include <cstdio>
#include <cstring>
#include <map>
#include <tuple>

#include "launch.h"

namespace emu {

namespace {

struct Entry {
    std::string json;  // without the closing brace
    uint64_t times = 1;
};
std::vector<Entry> entries;
std::map<std::tuple<std::string, std::string, uintptr_t, int, uintptr_t>, size_t> known;
constexpr size_t kMostFindings = 64;

std::string quoted(const std::string& text) {
    std::string out = "\"";
    for (unsigned char c : text) {
        if (c == '"' || c == '\\') {
            out += '\\';
            out += static_cast<char>(c);
        } else if (c < 0x20) {
            char code[8];
            std::snprintf(code, sizeof code, "\\u%04x", c);
            out += code;
        } else {
            out += static_cast<char>(c);
        }
    }
    return out + "\"";
}

std::string site(uintptr_t caller, uintptr_t near) {
    Dl_info info, near_info;
    for (long long shift : {0LL, 1LL << 32, -(1LL << 32)}) {
        const uintptr_t pc = caller + static_cast<uintptr_t>(shift);
        if (!dladdr(reinterpret_cast<void*>(pc), &info) || !info.dli_fname) continue;
        if (near && (!dladdr(reinterpret_cast<void*>(near), &near_info) || near_info.dli_fbase != info.dli_fbase))
            continue;
        // A return address. One byte earlier lies within the call, so that its line is the line of the access.
        const uintptr_t offset = pc - 1 - reinterpret_cast<uintptr_t>(info.dli_fbase);
        return "[" + quoted(info.dli_fname) + "," + std::to_string(offset) + "]";
    }
    return "null";
}

std::string triple(EmuIndex i) {
    return "[" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + "]";
}

}  // namespace

size_t finding_count() { return entries.size(); }

void report(const Report& r) {
    const std::string kernel = launch_now ? launch_now->kernel : "";
    const auto key = std::make_tuple(std::string(r.kind), kernel, r.where.caller, r.where.line, r.other_caller);
    auto found = known.find(key);
    if (found != known.end()) {
        ++entries[found->second].times;
        return;
    }
    if (entries.size() >= kMostFindings) return;
    known[key] = entries.size();
    Entry e;
    e.json = "{\"kind\":" + quoted(r.kind) + ",\"message\":" + quoted(r.message) + ",\"kernel\":" + quoted(kernel) +
             ",\"file\":" + quoted(launch_now && launch_now->file ? launch_now->file : "") +
             ",\"line\":" + std::to_string(r.where.line) + ",\"detail\":" + quoted(r.detail);
    if (r.has_thread)
        e.json += ",\"block\":" + triple(emu_block_index) + ",\"thread\":" + triple(thread_index_of(now.thread));
    if (r.where.caller) e.json += ",\"site\":" + site(r.where.caller, 0);
    if (r.other_caller) e.json += ",\"other\":" + site(r.other_caller, r.where.caller);
    entries.push_back(std::move(e));
}

// Finds memory that grows with every call: after each of five calls in a row that launched kernels,
// more cudaMalloc blocks are allocated than before. A workspace that is kept grows in its first call
// only.
void note_leak() {
    static uint64_t launches = 0;
    static DeviceBlocks before;
    static int growing = 0;
    if (counters.launches == launches) return;
    launches = counters.launches;
    const DeviceBlocks alive = device_blocks();
    growing = alive.count > before.count ? growing + 1 : 0;
    if (growing == 5)
        report({"leaked memory",
                "each call allocates memory with cudaMalloc and does not free it: " +
                    std::to_string(alive.count - before.count) + " block(s), " +
                    std::to_string(alive.bytes - before.bytes) + " bytes",
                {alive.newest_caller, 0}, std::to_string(alive.count) + " blocks are allocated after five such calls", 0, false});
    before = alive;
}

}  // namespace emu

using namespace emu;

extern "C" {

// Moves all findings out as a JSON list; the text lives until the next call.
const char* emu_take_findings() {
    static std::string text;
    note_leak();
    text = "[";
    for (size_t i = 0; i < entries.size(); ++i) {
        if (i) text += ",";
        text += entries[i].json + ",\"times\":" + std::to_string(entries[i].times) + "}";
    }
    text += "]";
    entries.clear();
    known.clear();
    return text.c_str();
}

uint64_t emu_launches() { return counters.launches; }
uint64_t emu_launches_without_stream() { return counters.without_stream; }

void emu_configure(int answer_cuda) { settings.answer_cuda = answer_cuda != 0; }

void emu_set_order(int order, uint64_t seed) {
    settings.order = order;
    settings.seed = seed;
}

void emu_note_failure(const char* kind, const char* text) { report({kind, text, {0, 0}, "", 0, false}); }
}
