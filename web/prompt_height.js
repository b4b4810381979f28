// The prompt boxes of VGT AR Sampler keep their height when a preview takes room in the node: on the canvas the height they
// had, in Nodes 2.0 the least height, which a style sheet tells it.
import { app } from '../../scripts/app.js'

const HEIGHT = 80

const sheet = document.head.appendChild(document.createElement('style'))
const samplers = new Set()

function writeSheet() {
  const rules = [...samplers].map((node) => `[data-node-id="${node.id}"] textarea { min-height: ${HEIGHT}px }`)
  sheet.textContent = rules.join('\n')
}

function keepHeight(node, widget) {
  let before = HEIGHT // there was a picture
  widget.options.getMinHeight = () => {
    if (node.imgs?.length) return before
    before = Math.max(widget.computedHeight ?? HEIGHT, HEIGHT)
    return HEIGHT
  }
}

app.registerExtension({
  name: 'VGT.PromptHeight',
  nodeCreated(node) {
    if (node.comfyClass !== 'VGTARSampler') return
    for (const widget of node.widgets ?? []) {
      if (['prompt', 'negative_prompt'].includes(widget.name) && widget.options) keepHeight(node, widget)
    }
    const { onAdded, onRemoved } = node
    node.onAdded = function (...given) {
      onAdded?.apply(this, given)
      samplers.add(this)
      writeSheet()
    }
    node.onRemoved = function (...given) {
      onRemoved?.apply(this, given)
      samplers.delete(this)
      writeSheet()
    }
  }
})
