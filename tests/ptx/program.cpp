#include "program.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <set>
#include <utility>

namespace ptx {
namespace {

bool in_word(char c) { return isalnum(static_cast<unsigned char>(c)) || strchr("_$%.", c); }

const std::map<std::string_view, Special> kSpecials = {
    {"%tid.x", Special::kThreadX},    {"%tid.y", Special::kThreadY},
    {"%tid.z", Special::kThreadZ},    {"%ctaid.x", Special::kBlockX},
    {"%ctaid.y", Special::kBlockY},   {"%ctaid.z", Special::kBlockZ},
    {"%ntid.x", Special::kThreadsX},  {"%ntid.y", Special::kThreadsY},
    {"%ntid.z", Special::kThreadsZ},  {"%nctaid.x", Special::kBlocksX},
    {"%nctaid.y", Special::kBlocksY}, {"%nctaid.z", Special::kBlocksZ},
    {"%laneid", Special::kLane},      {"%warpid", Special::kWarp},
};

int64_t bytes_of(std::string_view type) {  // .b32
  const auto digits = type.find_first_of("0123456789");
  return std::stoi(std::string(type.substr(digits))) / 8;
}

int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// The parts of an instruction's name, which many instructions share.
const std::vector<std::string>* parts_of(const std::string& name) {
  static std::map<std::string, std::vector<std::string>> known;
  const auto [found, added] = known.try_emplace(name);
  for (size_t at = 0; added && at != std::string::npos;) {
    const size_t dot = name.find('.', at);
    found->second.push_back(name.substr(at, dot - at));
    at = dot == std::string::npos ? dot : dot + 1;
  }
  return &found->second;
}

class Parser {
 public:
  explicit Parser(const std::string& text) : text_(text) {}

  std::map<std::string, Function> module() {
    std::map<std::string, Function> functions;
    while (skip_blanks()) {
      const std::string word = next();
      if (word == ".version") {  // the next module of several
        sources_ = std::make_shared<std::vector<Source>>();
        files_ = std::make_shared<std::map<int, std::string>>();
        places_.clear(), source_ = -1;
      } else if (word == ".file") {
        file();
      } else if (word == ".extern" || word == ".global") {
        declaration(word == ".global");
      } else if (word == ".entry") {
        Function function = entry();
        function.sources = sources_, function.files = files_;
        functions.emplace(function.name, std::move(function));
      }
    }
    return functions;
  }

 private:
  using Place = std::array<int, 3>;  // in a source: file, line, column

  // -- words

  bool skip_blanks() {
    while (at_ < text_.size()) {
      if (text_[at_] == '\n') ++line_;
      if (isspace(static_cast<unsigned char>(text_[at_]))) {
        ++at_;
      } else if (text_.compare(at_, 2, "//") == 0) {
        at_ = std::min(text_.find('\n', at_), text_.size());
      } else if (text_.compare(at_, 2, "/*") == 0) {
        const size_t end = text_.find("*/", at_) + 2;
        line_ += std::count(text_.begin() + at_, text_.begin() + end, '\n');
        at_ = end;
      } else {
        return true;
      }
    }
    return false;
  }

  // A word, or one character that is part of none.
  std::string next() {
    if (!skip_blanks()) fail("the text ends early");
    size_t end = at_;
    while (end < text_.size() && (in_word(text_[end]) || text_.compare(end, 2, "::") == 0 ||
                                  (end > at_ && text_.compare(end - 1, 2, "::") == 0))) {
      ++end;
    }
    end = std::max(end, at_ + 1);
    return text_.substr(std::exchange(at_, end), end - at_);
  }
  char peek() { return skip_blanks() ? text_[at_] : '\0'; }
  bool take(char c) {
    if (peek() != c) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (!take(c)) fail(std::string("expected ") + c);
  }
  void skip_past(char c) {
    while (!take(c)) next();
  }
  void skip_line() { at_ = std::min(text_.find('\n', at_), text_.size()); }

  [[noreturn]] void fail(const std::string& what) const {
    throw std::runtime_error("PTX, line " + std::to_string(line_) + ": " + what + " before " +
                             text_.substr(at_, 40));
  }

  // -- declarations

  // `.shared .align 8 .b8 name[12];` behind its first word; of the module.
  void declaration(bool global) {
    std::string word = next();
    const bool shared = word == ".shared";
    int64_t align = 1, bytes = 1;
    for (;; word = next()) {
      if (word == ".align") {
        align = std::stoll(next());
      } else if (word[0] == '.') {
        if (word.find_first_of("0123456789") != std::string::npos) bytes = bytes_of(word);
      } else {
        break;
      }
    }
    if (take('[')) {
      const std::string count = next();
      bytes *= count == "]" ? 0 : std::stoll(count);
    }
    skip_past(';');
    if (shared) dynamic_.emplace_back(word, align);
    if (global) globals_.insert(word);
  }

  Function entry() {
    Function function;
    function_ = &function;
    names_.clear(), labels_.clear(), numbers_.clear(), jumps_.clear();
    function.name = next();
    if (take('(')) {
      while (!take(')')) parameter(), take(',');
    }
    for (std::string word = next(); word != "{"; word = next()) {
      if (word == ".maxntid" || word == ".reqntid") {
        int64_t threads = std::stoll(next());
        while (take(',')) threads *= std::stoll(next());
        function.max_threads = threads;
        if (word == ".reqntid") function.exact_threads = threads;
      } else if (word[0] == '.') {
        next();
      }
    }
    body();
    for (const auto& [name, align] : dynamic_) {
      function.shared_bytes = round_up(function.shared_bytes, align);
    }
    for (const auto& [name, align] : dynamic_) {
      if (const auto found = names_.find(name); found != names_.end()) {
        function.constants.emplace_back(found->second, function.shared_bytes);
      }
    }
    for (const auto& [index, label] : jumps_) {
      if (!labels_.contains(label)) fail("no label " + label);
      function.code[index].target = labels_[label];
    }
    for (Instruction& instruction : function.code) decode(instruction);
    return function;
  }

  void parameter() {  // .param .align 8 .b8 name[72]   .param .u64 .ptr .global .align 1 name
    int64_t align = 0, bytes = 0;
    std::string word = next();
    for (; word[0] == '.'; word = next()) {
      if (word == ".align" && bytes == 0)
        align = std::stoll(next());
      else if (word == ".align")
        next();
      else if (word.find_first_of("0123456789") != std::string::npos)
        bytes = bytes_of(word);
    }
    align = std::max(align, bytes);
    if (take('[')) bytes *= std::stoll(next()), expect(']');
    function_->parameter_bytes = round_up(function_->parameter_bytes, align);
    constant(word, function_->parameter_bytes);
    function_->parameters.push_back({function_->parameter_bytes, bytes});
    function_->parameter_bytes += bytes;
  }

  void constant(const std::string& name, uint64_t value) {
    names_[name] = function_->num_registers;
    function_->constants.emplace_back(function_->num_registers++, value);
  }

  // -- code

  void body() {
    for (int depth = 1; depth > 0;) {
      if (take('{')) {
        ++depth;
      } else if (take('}')) {
        --depth;
      } else {
        statement();
      }
    }
  }

  void statement() {
    skip_blanks();
    const int line = line_;
    std::string word = next();
    if (word == ".loc") return location();
    if (word == ".file") return file();
    if (word == ".reg") {
      while (word[0] == '.') word = next();
      for (;; word = next()) {
        if (word == ";") return;
        if (word == "<")
          skip_past('>');
        else if (word[0] != ',')
          register_of(word);
      }
    }
    if (word == ".shared") {
      expect_word(".align");
      const int64_t align = std::stoll(next());
      const int64_t element = bytes_of(next());
      const std::string name = next();
      const int64_t count = take('[') ? std::stoll(next()) : 1;
      skip_past(';');
      function_->shared_bytes = round_up(function_->shared_bytes, align);
      constant(name, function_->shared_bytes);
      function_->shared_bytes += element * count;
      return;
    }
    if (word[0] == '.') return skip_past(';');
    if (take(':')) {
      labels_[word] = static_cast<int>(function_->code.size());
      return;
    }
    Instruction instruction;
    instruction.line = line;
    instruction.source = source_;
    if (word == "@") {
      instruction.unless = take('!');
      instruction.guard = register_of(next());
      word = next();
    }
    instruction.parts = parts_of(word);
    if (instruction.name() == "bra") {
      jumps_.emplace_back(function_->code.size(), next());
      expect(';');
    } else if (!take(';')) {
      do operand(instruction);
      while (take(','));
      expect(';');
    }
    function_->code.push_back(std::move(instruction));
  }

  void file() {  // .file 3 "folder/name", and more
    const auto number = static_cast<int>(integer());
    expect('"');
    const size_t end = text_.find('"', at_), folder = text_.rfind('/', end);
    const size_t start = folder == std::string::npos || folder < at_ ? at_ : folder + 1;
    (*files_)[number] = text_.substr(start, end - start);
    skip_line();
  }

  // .loc 3 120 7, function_name name, inlined_at 2 45 9
  void location() {
    const Place place = next_place();
    int inlined_at = -1;
    if (text_[at_] == ',') {
      while (next() != "inlined_at") {
      }
      inlined_at = source_at(next_place(), -1);
    }
    skip_line();
    places_.erase(place);
    source_ = source_at(place, inlined_at);
  }
  Place next_place() {
    Place place;
    for (int& number : place) number = static_cast<int>(integer());
    return place;
  }
  int source_at(const Place& place, int inlined_at) {
    const auto [found, added] = places_.emplace(place, sources_->size());
    if (added) sources_->push_back({place[0], place[1], inlined_at});
    return found->second;
  }

  void expect_word(const char* wanted) {
    if (next() != wanted) fail(std::string("expected ") + wanted);
  }

  void operand(Instruction& instruction) {
    Operand operand;
    const auto add = [&] { instruction.r.push_back(value()), ++operand.count; };
    if (take('{')) {
      do add();
      while (take(','));
      expect('}');
    } else if (take('[')) {
      add();
      if (take('+')) operand.offset = integer();
      expect(']');
    } else {
      add();
      if (take('|')) add();
    }
    instruction.operands.push_back(operand);
  }

  int64_t integer() {
    const bool negative = take('-');
    const std::string word = next();
    const auto magnitude = static_cast<int64_t>(std::stoull(word, nullptr, 0));
    return negative ? -magnitude : magnitude;
  }

  // The register of a name or a number.
  int value() {
    const char first = peek();
    if (first == '-' || isdigit(static_cast<unsigned char>(first))) {
      if (text_.compare(at_, 2, "0f") == 0 || text_.compare(at_, 2, "0d") == 0) {
        return number(std::stoull(next().substr(2), nullptr, 16));
      }
      return number(static_cast<uint64_t>(integer()));
    }
    return register_of(next());
  }

  int number(uint64_t bits) {
    const auto [found, added] = numbers_.emplace(bits, function_->num_registers);
    if (added) function_->constants.emplace_back(function_->num_registers++, bits);
    return found->second;
  }

  int register_of(const std::string& name) {
    const auto [found, added] = names_.emplace(name, function_->num_registers);
    if (!added) return found->second;
    const int index = function_->num_registers++;
    if (const auto special = kSpecials.find(name); special != kSpecials.end()) {
      function_->specials.emplace_back(index, special->second);
    } else if (globals_.contains(name)) {
      function_->constants.emplace_back(index, 0);  // constants of host code and of assertions
    }
    return index;
  }

  const std::string& text_;
  size_t at_ = 0;
  int line_ = 1;
  int source_ = -1;
  std::map<Place, int> places_;  // the latest of sources_
  std::shared_ptr<std::vector<Source>> sources_;
  std::shared_ptr<std::map<int, std::string>> files_;
  std::vector<std::pair<std::string, int64_t>>
      dynamic_;  // shared memory of unknown size, alignment
  std::set<std::string> globals_;
  Function* function_ = nullptr;
  std::map<std::string, int> names_, labels_;
  std::map<uint64_t, int> numbers_;
  std::vector<std::pair<size_t, std::string>> jumps_;
};

}  // namespace

std::map<std::string, Function> parse(const std::string& text) { return Parser(text).module(); }

}  // namespace ptx
